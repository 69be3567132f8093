"""Take the README's picture: JupyterLab in headless Chromium, 02_train in the middle of a training.

    make picture

It needs the tokenized sample (`make demo`), Debian's chromium, and the `browser` extra.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import lab

from neoxkit import paths, runs, tokenized
from neoxkit.errors import UserError

RUN = "picture"
PICTURE = Path(__file__).parents[1] / "docs" / "training.png"
STATUS = """[...document.querySelectorAll('.jp-OutputArea-output')]
    .find(e => /^\\s*step [\\d,]+ of [\\d,]+ ·/.test(e.textContent))"""
HALFWAY = f"""(() => {{
    const status = /step ([\\d,]+) of ([\\d,]+)/.exec({STATUS}?.textContent ?? '');
    const [at, of] = (status ?? []).slice(1).map(s => Number(s.replaceAll(',', '')));
    return at > of / 2;
}})()"""


def train_and_look(notebook: lab.Notebook) -> None:
    """Run the notebook; take the picture when half of the training is over."""
    page = notebook.page
    notebook.run_all()
    page.wait_for_function(HALFWAY, timeout=400_000)
    notebook.command("application:toggle-left-area")
    page.wait_for_timeout(3000)
    page.evaluate(f"{STATUS}.scrollIntoView({{block: 'start'}})")
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollBy(0, -150)")
    page.wait_for_timeout(1000)
    page.screenshot(path=PICTURE)
    notebook.command("notebook:interrupt-kernel")
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
        with lab.jupyterlab(Path(place)) as address, lab.chromium() as browser:
            train_and_look(lab.Notebook(browser, address, "02_train.ipynb"))
    shutil.rmtree(folder, ignore_errors=True)
    print(f"wrote {paths.short(PICTURE)}")


if __name__ == "__main__":
    main()
