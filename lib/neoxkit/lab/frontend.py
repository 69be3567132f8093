"""Widgets for whoever is looking, and whether anybody is: the tabs connected to this kernel."""

import json
import os
import urllib.request
from functools import cache
from pathlib import Path

import ipywidgets as widgets
import psutil
from IPython.display import display

from neoxkit.lab import view
from neoxkit.lab.view import View

UNATTENDED = {"papermill", "neoxkit", "nbconvert", "jupyter-nbconvert", "jupyter-execute"}
# JupyterLab shows an error in place of a saved widget whose kernel is gone, and after a restart a
# widget that does nothing. This note stands below each widget and takes its place then.
_NOTE = """<p class="neoxkit-note" style="display:none">%s</p><style>
.jp-OutputArea-child:has(+ .jp-OutputArea-child .neoxkit-note):not(:has(
.jp-OutputArea-output > .jupyter-widgets:not(.jupyter-widgets-disconnected))) { display: none }
.jp-OutputArea-child:not(:has(.jp-OutputArea-output > .jupyter-widgets:not(
.jupyter-widgets-disconnected))) + .jp-OutputArea-child .neoxkit-note { display: block !important }
</style>"""
# A slider of ipywidgets has no name, and announces the number of its option instead of its value.
_NAMES = """<script>(() => {
const area = document.currentScript.closest('.jp-OutputArea');
if (!area || area.dataset.named) return;
area.dataset.named = 'yes';
const set = (element, name, text) => {
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
};
const name = () => area.querySelectorAll('.widget-slider').forEach(slider => {
    const [label, handle, readout] = ['.widget-label', '.noUi-handle', '.widget-readout']
        .map(part => slider.querySelector(part));
    set(handle, 'aria-label', label.textContent);
    set(handle, 'aria-valuetext', readout.textContent);
    set(readout, 'aria-label', label.textContent);
    set(readout, 'role', 'textbox');
});
const what = {subtree: true, childList: true, attributeFilter: ['aria-valuetext']};
new MutationObserver(name).observe(area, what);
name();
})()</script>"""


def show(box: widgets.Widget, text: str, what: str = "the widgets") -> None:
    """Display a widget, or only its text where nobody can move it.

    In the HTML of a notebook that papermill executed, a widget is an empty space. A notebook that
    is opened again says how to get `what`; an untrusted one shows no widget, only HTML.
    """
    if unattended():
        display({"text/plain": text}, raw=True)
        return
    again = f"Run this cell to get {what}."
    untrusted = {"text/html": view.sentence(again).html, "text/plain": text}
    display({**box._repr_mimebundle_(), **untrusted}, raw=True)
    display(View(_NOTE % view.escape(again) + _NAMES, ""))


@cache
def unattended() -> bool:
    """Return whether this kernel was started by a program that executes notebooks."""
    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return False
    program = command[2:3] if command[1:2] == ["-m"] else command[1:2]
    return any(Path(name).stem in UNATTENDED for name in program)


def num_tabs() -> int | None:
    """Count the connections to this kernel; None without a Jupyter server (as under papermill)."""
    found = _address()
    if not found:
        return None
    url, token = found
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"})
    try:
        with urllib.request.urlopen(request, timeout=1) as answer:
            return int(json.load(answer)["connections"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@cache
def _address() -> tuple[str, str] | None:
    """Return the URL at which the Jupyter server describes this kernel, and the server's token."""
    started_by = os.environ.get("JPY_PARENT_PID", "")
    try:
        from ipykernel.connect import get_connection_file
        from jupyter_server.serverapp import list_running_servers

        kernel = Path(get_connection_file()).stem.removeprefix("kernel-")
        for server in list_running_servers():
            if str(server["pid"]) == started_by and server["token"]:
                return f"{server['url']}api/kernels/{kernel}", server["token"]
    except (ImportError, RuntimeError, OSError, KeyError):
        pass
    return None
