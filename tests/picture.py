"""Take the README's pictures in JupyterLab in headless Chromium: a training, and a sweep compared.

    make picture

It needs the tokenized sample (`make demo`), Debian's chromium, and the `browser` extra.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import lab_driver

from neoxkit import paths
from neoxkit.data import tokenized
from neoxkit.errors import UserError

RUN = "picture"
HEIGHTS = {"02_train": 960, "04_compare": 1230}
PICTURES = Path(__file__).parents[1] / "docs"
STATUS = """[...document.querySelectorAll('.jp-OutputArea-output')]
    .find(e => /^\\s*step [\\d,]+ of [\\d,]+ ·/.test(e.textContent))"""
HALFWAY = f"""(() => {{
    const status = /step ([\\d,]+) of ([\\d,]+)/.exec({STATUS}?.textContent ?? '');
    const [at, of] = (status ?? []).slice(1).map(s => Number(s.replaceAll(',', '')));
    return at > of / 2;
}})()"""
CELL = """[...document.querySelectorAll('.jp-Cell')]
    .find(e => e.textContent.includes('%s'))"""
SWEPT = {"learning_rate": "5e-4,2e-3,8e-3", "per_device_train_batch_size": "8,32"}


def take(notebook: lab_driver.Notebook, element: str, above: int, name: str) -> None:
    """Take a picture of the window, scrolled so that an element is `above` pixels below its top."""
    page = notebook.page
    notebook.command("application:toggle-left-area")
    page.wait_for_timeout(3000)
    page.evaluate(f"{element}.scrollIntoView({{block: 'start'}})")
    page.evaluate(f"document.querySelector('.jp-WindowedPanel-outer').scrollBy(0, {-above})")
    page.wait_for_timeout(1000)
    page.screenshot(path=PICTURES / name)
    print(f"wrote docs/{name}")


def training(notebook: lab_driver.Notebook) -> None:
    """Take the picture of a training when half of it is over."""
    notebook.run_all()
    notebook.page.wait_for_function(HALFWAY, timeout=400_000)
    take(notebook, STATUS, 150, "training.png")
    notebook.command("notebook:interrupt-kernel")
    notebook.page.wait_for_timeout(5000)


def comparison(notebook: lab_driver.Notebook) -> None:
    """Take the picture of a sweep's curves and heat map."""
    notebook.run_all()
    notebook.wait_for("comparison.save(", "comparison.json")
    take(notebook, CELL % "comparison.overlay(", 20, "comparison.png")


def main() -> None:
    """Make the pictures with runs of their own, which are deleted afterwards."""
    try:
        tokenized.load_manifest(paths.tokenized("sample"))
    except UserError as mistake:
        print(f"error: {mistake} (make demo)", file=sys.stderr)
        sys.exit(2)
    delete_runs()
    look("02_train", {"run": RUN}, training)
    delete_runs()
    flags = [part for name, values in SWEPT.items() for part in ("-p", name, values)]
    flags += ["-p", "run", RUN, "-p", "num_train_epochs", "1"]
    command = [sys.executable, "-m", "neoxkit.cli", "sweep", "02_train"]
    subprocess.run([*command, *flags], check=True)
    look("04_compare", {"name": RUN, "runs": [f"{RUN}.*"]}, comparison)
    delete_runs()


def look(name: str, values: dict[str, object], then: Callable[[lab_driver.Notebook], None]) -> None:
    """Open a copy of a notebook with these parameters."""
    with tempfile.TemporaryDirectory() as place:
        file = f"{name}.ipynb"
        lab_driver.set_parameters(paths.root() / "notebooks" / file, Path(place) / file, values)
        with lab_driver.jupyterlab(Path(place)) as address, lab_driver.chromium() as browser:
            then(lab_driver.Notebook(browser, address, file, height=HEIGHTS[name]))


def delete_runs() -> None:
    """Delete the runs that the pictures were taken of."""
    for folder in (paths.root() / "runs").glob(f"{RUN}*"):
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
