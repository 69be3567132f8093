"""`neoxkit report`: a run as one HTML page that opens anywhere and needs no network."""

import time
from pathlib import Path

from neoxkit import files, paths
from neoxkit.cli import terminal
from neoxkit.errors import UserError
from neoxkit.lab import curve, evaluation, view
from neoxkit.lab.figure import Picture
from neoxkit.runs import card as run_card
from neoxkit.runs import health
from neoxkit.runs.events import METRICS, History
from neoxkit.runs.folder import EVALUATION, of_side, standing_of
from neoxkit.settings import NOTEBOOKS

REPORT = "report.html"
# Nothing is fetched and no script runs, whatever the notebook contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
h1, h2, h3 { line-height: 1.2 }
.part { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; color: #666 }
table { border-collapse: collapse; font-size: 90%; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #ddd } img { max-width: 100% } button { display: none }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; white-space: pre-wrap }
details > summary { cursor: pointer; color: #666; font-size: 85% }
nav a { margin-right: 1rem } .prompt, .anchor-link { display: none }
"""
TEMPLATE = """
{%- extends 'basic/index.html.j2' -%}
{%- block input_group -%}
{%- if cell.source -%}<details><summary>code</summary>{{ super() }}</details>{%- endif -%}
{%- endblock input_group -%}
"""


def write(run: str) -> Path:
    """Write runs/RUN/report.html from the run's files and executed notebooks; return its path."""
    folder = paths.run(run)
    if not (folder / METRICS).is_file() and not _notebooks(folder):
        raise UserError("RUN", f"{run} has neither metrics nor notebooks", "see neoxkit runs")
    sections = {"Overview": _overview(folder)}
    sections |= {path.stem: _notebook(path) for path in _notebooks(folder)}
    links = "".join(f'<a href="#{name}">{name}</a>' for name in sections)
    body = "".join(
        f'<h2 class="part" id="{name}">{name}</h2>{html}' for name, html in sections.items()
    )
    title = view.escape(f"Run {run}")
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{title}</title><style>{STYLE}</style></head>"
        f"<body><h1>{title}</h1><nav>{links}</nav>{body}</body></html>"
    )
    target = folder / REPORT
    target.write_text(page, encoding="utf-8")
    return target


def _notebooks(folder: Path) -> list[Path]:
    """Return the executed notebooks of a run, in order."""
    found = [folder / f"{stage.notebook}.ipynb" for stage in NOTEBOOKS]
    return [path for path in found if path.is_file()]


def _overview(folder: Path) -> str:
    """Show the run's state, card, curve and evaluation."""
    parts = [view.table(run_card.rows(folder)).html]
    if (folder / METRICS).is_file():
        standing, history = standing_of(folder), History.of_run(folder)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(standing.changed))
        how = f"<p>{standing.state}, {terminal.reached(standing)} ({when})</p>"
        alert, drawn = view.alert(health.warnings(history)).html, curve.draw(history)
        parts = [how, alert, *parts, _picture(drawn)]
    for path in (folder / of_side(EVALUATION, side) for side in ("eval", "test")):
        if path.is_file():
            found = files.read_json(path)
            parts += [evaluation.scores(found).html, _picture(evaluation.comparison(found))]
    return "".join(parts)


def _picture(figure: Picture) -> str:
    return f"<p>{figure.html()}</p>"


def _notebook(path: Path) -> str:
    """Return the body of an executed notebook, its code folded."""
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_file="folded.html.j2",
        template_name="basic",
        extra_loaders=[DictLoader({"folded.html.j2": TEMPLATE})],
    )
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)  # they need scripts, which don't run here
    html, _ = exporter.from_notebook_node(notebook)
    return html
