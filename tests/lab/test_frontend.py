"""frontend.py without a browser: who started the kernel, and what its server says."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import ipywidgets
import pytest
from conftest import Outputs

from neoxkit.lab import frontend


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python", "-m", "papermill", "a.ipynb"], True),
        (["/venv/bin/python", "/venv/bin/papermill", "a.ipynb"], True),
        (["python", "-m", "neoxkit.cli", "run"], True),
        (["/venv/bin/python", "/venv/bin/neoxkit", "run"], True),
        (["python", "-m", "jupyterlab", "--no-browser"], False),
        (["/venv/bin/python", "/venv/bin/jupyter-lab", "/home/neoxkit"], False),
        ([], False),
    ],
)
def test_widgets_are_shown_only_where_somebody_can_move_them(
    command: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = type("Process", (), {"__init__": lambda *_: None, "cmdline": lambda _: command})
    monkeypatch.setattr(frontend.psutil, "Process", parent)
    outputs = Outputs()
    monkeypatch.setattr(frontend, "display", outputs)
    frontend.unattended.cache_clear()
    frontend.show(ipywidgets.IntSlider(), "(a slider)")
    frontend.unattended.cache_clear()
    assert outputs[0]["text/plain"] == "(a slider)"
    assert ("application/vnd.jupyter.widget-view+json" in outputs[0]) != expected
    assert ("text/html" in outputs[0]) != expected
    assert len(outputs) == (1 if expected else 2)


def test_a_notebook_that_is_opened_again_says_how_to_get_the_widgets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Below the widget, hidden as long as that is alive; in its place where nothing is trusted."""
    outputs = Outputs()
    monkeypatch.setattr(frontend, "display", outputs)
    monkeypatch.setattr(frontend, "unattended", lambda: False)
    frontend.show(ipywidgets.IntSlider(), "(a slider)", "the <dials>")
    shown, note = outputs
    assert shown["text/html"] == "<p>Run this cell to get the &lt;dials&gt;.</p>"
    hidden = '<p class="neoxkit-note" style="display:none">'
    assert note.html.startswith(f"{hidden}Run this cell to get the &lt;dials&gt;.</p>")
    assert note.text == ""


@pytest.fixture
def server() -> Iterator[tuple[str, list]]:
    """Start a server that answers like Jupyter's; yield its address and the requests it got."""
    asked: list = [{"connections": 2}]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(asked[0]).encode())

        def log_message(self, *_: object) -> None:
            pass

    served = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}/api/kernels/k", asked
    served.shutdown()


def test_the_server_is_asked_for_this_kernel(
    server: tuple[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = server
    monkeypatch.setattr(frontend, "_address", lambda: (address, "secret"))
    assert frontend.num_tabs() == 2
    assert asked[1] == ("/api/kernels/k", "token secret")
    asked[0] = {"message": "no such kernel"}
    assert frontend.num_tabs() is None


def test_without_a_server_the_number_of_tabs_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "_address", lambda: None)
    assert frontend.num_tabs() is None
    monkeypatch.setattr(frontend, "_address", lambda: ("http://127.0.0.1:9/x", "t"))
    assert frontend.num_tabs() is None
