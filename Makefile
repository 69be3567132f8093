# make demo | make test | make lab | make bench: each sets up .venv on first use; later calls start at once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
TASKS := .venv/tasks
TRL_READY := .venv-trl/ready
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
GGUF := .venv-gguf
FAST := not process and not demo and not slow and not browser and not gguf and not crash and not interop and not cluster
TOKENIZER := $(or $(BENCH_DATA),../shared/data)/gpt-neox-tokenizer
GGUF_READY := .venv-gguf/ready
OLDER := .venv-transformers4
INTEROP := .venv-interop
LITGPT := .venv-litgpt

.PHONY: help setup demo test test-fast test-demo test-slow test-browser test-gguf gguf-data test-interop test-crash test-cluster lint lab picture bench bench-gpu bench-data doctor clean

help:
	@echo "make setup   .venv alone; the others do it on first use"
	@echo "make demo    set up, then the three notebooks on the built-in sample and model"
	@echo "make test    set up, then the tests"
	@echo "make test-fast  the tests that do not start a process: about two minutes on two cores"
	@echo "make test-demo  the whole demo and what its model must answer"
	@echo "make test-slow  what takes minutes: a compiled model, a killed sweep, measured memory"
	@echo "make test-browser  the notebooks in a real JupyterLab (needs chromium)"
	@echo "make test-gguf  a model converted for llama.cpp (compiles that once; needs a C++ compiler)"
	@echo "make test-interop  a model in transformers 4, TransformerLens, nnsight and TRL (sets up three environments)"
	@echo "make test-crash  whatever kills a run, by the hundred; an hour or more; writes tests/RELIABILITY.md"
	@echo "make test-cluster  trainings over two test hosts, by SLURM and by ssh (root; packages: .ci/run)"
	@echo "make lab     JupyterLab in this folder: open notebooks/01_tokenize.ipynb"
	@echo "make doctor  what this machine has and what is missing"
	@echo "make lint    ruff over everything, mypy over the library and the benchmarks"
	@echo "make picture the README's pictures (needs chromium)"
	@echo "make bench   the benchmark, beside the usual way and TRL (needs BENCH_DATA; BENCH_FLAGS=--list)"
	@echo "make bench-gpu  the same on a GPU, unattended; writes benchmarks/GPU.md"
	@echo "make clean   delete the demo's run and dataset"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: PYTHON: $(PYTHON) is not Python 3.11 or newer -- make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "Setting up .venv (once; some minutes, most of them downloads) ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(READY)

# lm_eval, which nothing but its tests needs.
$(TASKS): $(READY)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tasks]'
	@touch $(TASKS)

demo: $(READY)
	@$(BIN)/neoxkit run

test: $(TASKS)
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "$(FAST)"

test-demo: $(READY)
	@$(BIN)/python -m pytest -m demo

test-slow: $(READY)
	@$(BIN)/python -m pytest -m slow

test-browser: $(READY)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@$(BIN)/python -m pytest -m browser

gguf-data:
	@test -d "$(TOKENIZER)" || \
	  { echo "error: BENCH_DATA: no gpt-neox-tokenizer -- set it to the folder that holds it"; exit 2; }

# Its source package holds the converter, which asks for transformers 4.
$(GGUF_READY): tests/gguf-requirements.txt constraints.txt
	@echo "Setting up $(GGUF) (once; llama.cpp is compiled: ten minutes on two cores) ..."
	@test -x $(GGUF)/bin/pip || $(PYTHON) -m venv $(GGUF)
	@$(GGUF)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@CMAKE_ARGS="-DMTMD_BUILD=OFF" $(GGUF)/bin/pip install --quiet --disable-pip-version-check -r tests/gguf-requirements.txt
	@rm -rf $(GGUF)/source
	@$(GGUF)/bin/pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
	  -d $(GGUF)/source $$(grep ^llama tests/gguf-requirements.txt)
	@rm -rf $(GGUF)/llama.cpp && mkdir -p $(GGUF)/llama.cpp
	@tar -xzf $(GGUF)/source/*.tar.gz -C $(GGUF)/llama.cpp --strip-components=3 --wildcards '*/vendor/llama.cpp'
	@touch $(GGUF_READY)

test-gguf: gguf-data $(READY) $(GGUF_READY)
	@$(BIN)/python -m pytest -m gguf

# Each in an environment of its own, so that none can change the kit's packages: its folder, and what pip installs
# beside torch.
define environment
	@echo "Setting up $(1) (once) ..."
	@test -x $(1)/bin/pip || $(PYTHON) -m venv $(1)
	@$(1)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(1)/bin/pip install --quiet --disable-pip-version-check $(2)
	@touch $(1)/ready
endef

$(OLDER)/ready: tests/transformers4-requirements.txt constraints.txt
	$(call environment,$(OLDER),-r tests/transformers4-requirements.txt)

$(INTEROP)/ready: tests/interop-requirements.txt constraints.txt
	$(call environment,$(INTEROP),-c constraints.txt -r tests/interop-requirements.txt)

test-interop: $(READY) $(OLDER)/ready $(INTEROP)/ready $(TRL_READY)
	@$(BIN)/python -m pytest -m interop

test-crash: $(READY)
	@$(BIN)/python -m pytest -m crash

test-cluster: $(READY)
	@$(BIN)/python -m pytest -m cluster

# The peers' programs run in environments of their own.
lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@MYPYPATH=benchmarks $(BIN)/mypy $(filter-out %_peer.py,$(wildcard benchmarks/*.py))

# The kernel python3 of .venv comes before any other of that name.
lab: export JUPYTER_PATH := $(CURDIR)/.venv/share/jupyter$(if $(JUPYTER_PATH),:$(JUPYTER_PATH))
lab: $(READY)
	@$(if $(AS_ROOT),echo "note: you are root -- JupyterLab gets $(AS_ROOT) and listens on 127.0.0.1 alone")
	@$(BIN)/jupyter lab --ip=127.0.0.1 $(AS_ROOT)

picture: $(READY)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@$(BIN)/python tests/picture.py

# TRL has an environment of its own, with the same torch and transformers, so that it can't disturb the kit's.
$(TRL_READY): benchmarks/trl-requirements.txt constraints.txt
	$(call environment,.venv-trl,-c constraints.txt -r benchmarks/trl-requirements.txt)

bench-data: $(READY)
	@$(BIN)/python benchmarks/measure.py --check

# LitGPT as well: it takes an older huggingface_hub.
$(LITGPT)/ready: benchmarks/litgpt-requirements.txt constraints.txt
	$(call environment,$(LITGPT),-r benchmarks/litgpt-requirements.txt)

bench: $(READY) bench-data $(TRL_READY) $(LITGPT)/ready
	@$(BIN)/python benchmarks/measure.py $(BENCH_FLAGS)

bench-gpu: $(READY) bench-data $(TRL_READY)
	@$(BIN)/python benchmarks/gpu.py $(BENCH_FLAGS)

doctor: $(READY)
	@$(BIN)/neoxkit doctor

clean:
	rm -rf runs/demo data/tokenized/sample
