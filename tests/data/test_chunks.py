"""chunks.py and parallel.py: reading in chunks and processes gives the same as reading at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from neoxkit import machine, parallel, paths
from neoxkit.data import chunks, encoding, reading
from neoxkit.data.conversation import Names
from neoxkit.errors import Faults, UserError
from neoxkit.models import loading

END = "<|endoftext|>"
TEXT = (
    f"User: é\n\nAgent: one{END}{END}\n\n{END}\nBe kind.\n\nUser: a {END} b\n\nAgent: c{END}  \t\n"
    f"User: d\nAgent: glued\n\nAgent: e\n\nUser: f{END}User: g\n\nAgent:\n```\nUser: h\n```{END}\n"
)
JSON = '{"messages": [{"role": "user", "content": "é"}, {"role": "agent", "content": "b"}]}\n' * 9


@pytest.mark.parametrize("size", [1, 7, 40, 64, 100, 10_000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_chunks_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, end: str, size: int
) -> None:
    path = tmp_path / name
    text = "\ufeff" + (TEXT * 3 + "User: last\n\nAgent: no mark" if name == "t.txt" else JSON)
    path.write_bytes(text.replace("\n", end).encode())
    whole = reading.read(path)
    assert len(whole.chunks) == 1
    monkeypatch.setattr(chunks, "CHUNK_BYTES", size)
    monkeypatch.setattr(machine, "num_cores", lambda: 1)
    parts = reading.read(path)
    assert len(parts.chunks) > 1 or size > 100 or (name, end) == ("t.jsonl", "\r")
    assert sum(chunk.size for chunk in parts.chunks) == path.stat().st_size
    assert parts.conversations == whole.conversations and parts.sha256 == whole.sha256
    assert parts.facts == whole.facts and parts.sentences() == whole.sentences()


def test_later_chunks_can_outvote_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.txt"
    odd, usual = f"User: a\n\nNote: n\n\nJoi: b{END}\n", f"User: a\n\nJoi: b{END}\n"
    path.write_text(odd + usual * 30)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", len(odd))
    file = reading.read(path)
    assert len(file.chunks) > 10 and file.names.agent == "Joi" and file.facts.replies == 31


def test_faults_of_all_chunks_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.txt"
    path.write_text(f"User: a\n\nAgent: b{END}\n" * 3 + f"no turns{END}\n" * 3)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 30)
    with pytest.raises(Faults) as caught:
        reading.read(path)
    assert str(caught.value) == (
        f"{paths.short(path)}:10: a conversation without turns (3 of these, this is the first) -- "
        'begin it with "User: "'
    )


def test_a_wrong_byte_is_found_in_a_later_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, good = tmp_path / "t.txt", f"User: a\n\nAgent: b{END}\n".encode()
    path.write_bytes(good * 3 + b"User: caf\xe9")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", len(good))
    with pytest.raises(Faults, match=rf":10: not UTF-8 at byte {3 * len(good) + 9} \(0xe9\)"):
        reading.read(path)


def test_chunks_on_two_processes_give_the_tokens_of_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.txt"
    path.write_text("".join(f"User: {i}?\n\nAgent: It is {i}.{END}\n" for i in range(300)))
    tokenizer = loading.load_tokenizer("tiny")
    whole = encoding.encode(tokenizer, reading.read(path).conversations, Names())
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(machine, "num_cores", lambda: 2)
    file = reading.read(path)
    told: list[tuple[int, int]] = []
    table = encoding.encode_file(tokenizer, file, Names(), progress=lambda *now: told.append(now))
    assert len(file.chunks) > 5 and told[-1] == (300, 300) and len(told) == len(file.chunks)
    assert table.column("line").tolist() == whole.column("line").tolist()
    assert table.ids().tolist() == whole.ids().tolist()
    assert table.labels(table.ids()).tolist() == whole.labels(whole.ids()).tolist()
    assert table.keys().tolist() == whole.keys().tolist()


# --- workers ---


def _slow_first(item: int) -> tuple[int, int]:
    time.sleep(0.3 if item == 0 else 0)
    return item, os.getpid()


def _faulty(item: int) -> int:
    if item == 3:
        raise UserError("here", "is wrong", "mend it")
    return item


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "num_cores", lambda: 2)


def test_results_come_in_order_from_two_processes(two: None) -> None:
    found = list(parallel.each(_slow_first, range(20)))
    assert [item for item, _ in found] == list(range(20))
    assert len({process for _, process in found} - {os.getpid()}) == 2
    assert list(parallel.each(_slow_first, [1])) == [(1, os.getpid())]


def test_at_most_two_results_per_worker_wait(two: None) -> None:
    taken: list[int] = []

    class Items(list):
        def __iter__(self):
            for item in range(50):
                taken.append(item)
                yield item

    results = parallel.each(_slow_first, Items(range(50)))
    next(results)
    assert len(taken) == 5
    results.close()


def test_a_user_error_crosses_processes_unchanged(two: None) -> None:
    with pytest.raises(UserError, match=r"^here: is wrong -- mend it$"):
        list(parallel.each(_faulty, range(9)))


PARENT = """
import time
from neoxkit import machine, parallel
machine.num_cores = lambda: 2
def work(item):
    print("ready", flush=True)
    time.sleep(0.2 if item < 2 else 600)
    return item
for result in parallel.each(work, range(9)):
    time.sleep(600)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_parent(sent: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.read(5) == "ready"  # both may write into one line
    time.sleep(0.5)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) == 2
    parent.send_signal(sent)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    parent.kill()
