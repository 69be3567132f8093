"""Drive a JupyterLab of the tests' own with a headless Chromium."""

import json
import os
import re
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
from typing import Any

import nbformat
from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_SECONDS = 300.0  # only what hangs takes this long
TOKEN = "of-the-tests"
# The toolbar's texts are drawn one after the other: the kernel's name may appear beside an "idle"
# from before there was a kernel, and cells that are run at that moment do nothing.
READY = """(() => {
    const context = window.jupyterapp?.shell.currentWidget?.sessionContext;
    const kernel = context?.session?.kernel;
    return context?.isReady && kernel?.connectionStatus === 'connected' && kernel.status === 'idle'
        && document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle';
})()"""
SETTINGS = {  # file below lab's settings: what it holds
    "notebook-extension/tracker": {
        "windowingMode": "none"
    },  # else cells out of sight are not there
    "notebook-extension/panel": {},
    "apputils-extension/themes": {},
}


@contextmanager
def jupyterlab(root: Path, theme: str = "JupyterLab Light") -> Iterator[str]:
    """Start a JupyterLab with settings of its own that shows a folder; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        config = Path(folder) / "config" / "labconfig"
        config.mkdir(parents=True)
        news = {"@jupyterlab/apputils-extension:announcements": True}
        (config / "page_config.json").write_text(json.dumps({"disabledExtensions": news}))
        for name, values in SETTINGS.items():
            values = values | ({"theme": theme} if name.endswith("themes") else {})
            file = Path(folder) / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
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
             f"--port={port}", f"--IdentityProvider.token={TOKEN}",
             "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={root}"],
            env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            for _ in range(120):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            lab.send_signal(signal.SIGTERM)
            lab.wait(timeout=30)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start this machine's Chromium, headless."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Notebook:
    """A notebook in a tab of its own; `faults` are console errors and requests that leave."""

    def __init__(
        self, browser: Browser, address: str, name: str, width: int = 1000, height: int = 900
    ) -> None:
        self.faults: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(1000 * PATIENCE_SECONDS)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(f"{address}/lab/tree/{name}?token={TOKEN}&reset")
        self.wait_until_idle()

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.faults.append(f"{message.text} ({message.location.get('url', '')})")

    def _asked(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
            self.faults.append(f"asked for {url}")

    def command(self, name: str) -> None:
        """Start one of JupyterLab's commands; return at once."""
        self.page.evaluate(f"void window.jupyterapp.commands.execute('{name}')")

    def run_all(self) -> None:
        self.command("notebook:run-all-cells")

    def run(self, part: str, command: str = "notebook:run-cell") -> None:
        """Run the code cell whose source holds a text; or another command with it active."""
        at = self.number(part)
        self.page.evaluate(
            f"window.jupyterapp.shell.currentWidget.content.activeCellIndex = {at}; void 0"
        )
        self.command(command)

    def restart_kernel(self) -> None:
        """Restart the kernel without being asked to confirm."""
        self.page.evaluate(
            "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
        )
        self.wait_until_idle()

    def number(self, part: str) -> int:
        """Return the index of the one cell whose source holds a text."""
        cells = "window.jupyterapp.shell.currentWidget.content.model.cells"
        sources = self.page.evaluate(
            f"Array.from({{length: {cells}.length}}, (_, i) => {cells}.get(i).sharedModel.source)"
        )
        (at,) = [i for i, source in enumerate(sources) if part in source]
        return at

    def replace(self, part: str, old: str, new: str) -> None:
        """Replace text in the one cell whose source holds it."""
        cells = "window.jupyterapp.shell.currentWidget.content.model.cells"
        source = f"{cells}.get({self.number(part)}).sharedModel"
        texts = f"{json.dumps(old)}, {json.dumps(new)}"
        self.page.evaluate(f"{source}.setSource({source}.source.replace({texts})); void 0")

    def outputs(self, part: str) -> Any:
        """Return an expression for the outputs of the cell with this text."""
        return (
            self.page.locator(".jp-Cell").nth(self.number(part)).locator(".jp-Cell-outputWrapper")
        )

    def wait_for(self, part: str, text: str) -> None:
        """Wait until a cell's outputs hold a text; a failure prints what the notebook shows."""
        try:
            self.outputs(part).get_by_text(text).first.wait_for()
        except TimeoutError as late:
            raise AssertionError(f"no {text!r} in the outputs of {part!r}:\n{self}") from late

    def __str__(self) -> str:
        """Return each code cell's prompt and the end of its outputs."""
        cells = self.page.locator(".jp-CodeCell").all_inner_texts()
        return "\n".join(" ".join(text.split())[-300:] for text in cells)

    def wait_until_idle(self) -> None:
        self.page.wait_for_function(READY)

    def picture(self, part: str) -> str:
        """Return the newest picture among a cell's outputs, as a data URL."""
        image = self.outputs(part).locator("img[src^='data:image/png']").last
        return image.get_attribute("src") or ""

    def close(self) -> None:
        self.page.close()


def set_parameters(source: Path, target: Path, values: dict[str, object]) -> None:
    """Copy a notebook, with other values in its parameters cell."""
    nb = nbformat.read(source, as_version=4)
    (cell,) = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    for name, value in values.items():
        cell.source, count = re.subn(
            rf"(?m)^({name}(?:: \w+)? = )\S+", rf"\g<1>{value!r}", cell.source
        )
        assert count == 1, name
    nbformat.write(nb, target)
