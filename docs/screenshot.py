"""Take the README's picture: JupyterLab in headless Chromium, 02_train in the middle of a training.

    make picture

It needs the tokenized sample (`make demo`), Debian's chromium, and the `browser` extra.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from neoxkit import paths, runs, tokenized
from neoxkit.errors import UserError

RUN = "picture"
PICTURE = Path(__file__).with_name("training.png")
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
READY = """document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'
    && !/No Kernel/.test(document.querySelector('.jp-KernelName')?.textContent ?? 'No Kernel')"""
STATUS = """[...document.querySelectorAll('.jp-OutputArea-output')]
    .find(e => /tokens\\/s/.test(e.textContent))"""
HALFWAY = f"""(() => {{
    const status = /step ([\\d,]+) of ([\\d,]+)/.exec({STATUS}?.textContent ?? '');
    const [at, of] = (status ?? []).slice(1).map(s => Number(s.replaceAll(',', '')));
    return at > of / 2;
}})()"""


@contextmanager
def jupyterlab(notebooks: Path) -> Iterator[str]:
    """A JupyterLab with settings of its own; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config" / "labconfig"
        config.mkdir(parents=True)
        news = {"@jupyterlab/apputils-extension:announcements": True}
        (config / "page_config.json").write_text(json.dumps({"disabledExtensions": news}))
        names = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
        }
        env = os.environ | {name: f"{folder}/{part}" for name, part in names.items()}
        lab = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
             f"--port={port}", "--IdentityProvider.token=picture",
             "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={notebooks}"],
            env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            for _ in range(120):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/lab/tree/NOTEBOOK?token=picture"
        finally:
            lab.send_signal(signal.SIGTERM)
            lab.wait(timeout=30)


def train_and_look(page: Page, address: str, notebook: str) -> None:
    """Run the notebook; take the picture when half of the training is over."""
    page.goto(address.replace("NOTEBOOK", notebook))
    page.wait_for_function(READY, timeout=60_000)
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(HALFWAY, timeout=400_000)
    page.evaluate("void window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.wait_for_timeout(3000)
    page.evaluate(f"{STATUS}.scrollIntoView({{block: 'start'}})")
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollBy(0, -150)")
    page.wait_for_timeout(1000)
    page.screenshot(path=PICTURE)
    page.evaluate("void window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    page.wait_for_timeout(5000)


def main() -> None:
    """Make the picture with a run of its own, which is deleted afterwards."""
    try:
        tokenized.load_manifest(paths.tokenized("sample"))
    except UserError as mistake:
        print(f"error: {mistake} (make demo)", file=sys.stderr)
        sys.exit(2)
    folder = paths.run(RUN)
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        notebook = json.loads((paths.root() / "notebooks" / "02_train.ipynb").read_text())
        for cell in notebook["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                source = "".join(cell["source"]).replace('run: str = "demo"', f'run: str = "{RUN}"')
                cell["source"] = source
        runs.write_json(Path(place) / "02_train.ipynb", notebook)
        with jupyterlab(Path(place)) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1000, "height": 900})
            train_and_look(page, address, "02_train.ipynb")
            browser.close()
    shutil.rmtree(folder, ignore_errors=True)
    print(f"wrote {paths.short(PICTURE)}")


if __name__ == "__main__":
    main()
