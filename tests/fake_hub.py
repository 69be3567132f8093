"""A hub that serves a folder as one data set: what huggingface_hub and datasets ask of it."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "0123456789" * 4
NAME = "owner/name"


class _Answers(BaseHTTPRequestHandler):
    folder: Path

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        headers = {"X-Repo-Commit": COMMIT}
        if self._names_file(path, "resolve/main/") or self._names_file(path, f"resolve/{COMMIT}/"):
            raw = self.folder.joinpath(*path.split("/")[6:]).read_bytes()
            headers["ETag"] = f'"{hashlib.sha1(raw).hexdigest()}"'
            return self._send(raw, headers, with_body)
        api, _, tree = path.partition("/tree/")
        if api.startswith(f"/api/datasets/{NAME}"):
            inside = self.folder.joinpath(*tree.split("/")[1:])
            found = self._tree(inside) if tree else self._info()
            return self._send(json.dumps(found).encode(), headers)
        missing = "EntryNotFound" if path.startswith(f"/datasets/{NAME}/") else "RepoNotFound"
        return self._send(b"{}", {"X-Error-Code": missing}, with_body, 404)

    def _names_file(self, path: str, way: str) -> bool:
        start = f"/datasets/{NAME}/{way}"
        return path.startswith(start) and (self.folder / path.removeprefix(start)).is_file()

    def _info(self) -> dict[str, Any]:
        return {"id": NAME, "sha": COMMIT, "tags": [], "siblings": []}

    def _tree(self, inside: Path) -> list[dict[str, Any]]:
        every = "recursive=true" in self.path.lower()
        return [self._entry(f) for f in sorted(inside.rglob("*") if every else inside.glob("*"))]

    def _entry(self, path: Path) -> dict[str, Any]:
        kind = {"path": path.relative_to(self.folder).as_posix(), "oid": "0" * 40}
        if path.is_dir():
            return kind | {"type": "directory", "size": 0}
        return kind | {"type": "file", "size": path.stat().st_size}

    def _send(
        self, raw: bytes, headers: dict[str, str], with_body: bool = True, code: int = 200
    ) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(raw)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder as the data set NAME; give the hub's address, for HF_ENDPOINT."""
    answers = type("Answers", (_Answers,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
