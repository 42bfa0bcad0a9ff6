"""A web server of files as nginx or Apache are one: pages that link to what is in a folder, and parts of files (Range)."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

OTHER_LINKS = (
    '<a href="?C=N;O=D">Name</a> <a href="../">up</a> <a href="/">top</a> <a href="/elsewhere/">e</a> <a href="%2e%2e/x.png">x</a>'
)


class _Handler(http.server.BaseHTTPRequestHandler):
    root: Path
    sends_parts: bool

    def do_GET(self):
        path = self.root / unquote(self.path.partition("?")[0]).lstrip("/")
        if path.is_dir():
            links = [f'<a href="{quote(entry.name)}{"/" if entry.is_dir() else ""}">x</a>' for entry in path.iterdir()]
            self._answer(200, "\n".join([OTHER_LINKS, *links]).encode(), "text/html")
        elif not path.is_file():
            self._answer(404, b"", "text/plain")
        elif self.sends_parts and (part := self.headers["Range"]):
            begin, end = part.removeprefix("bytes=").split("-")
            data = path.read_bytes()
            found = data[int(begin) : int(end) + 1 if end else None]
            self._answer(206, found, "image/png", {"Content-Range": f"bytes {begin}-{int(begin) + len(found) - 1}/{len(data)}"})
        else:
            self._answer(200, path.read_bytes(), "image/png", {"Accept-Ranges": "bytes"} if self.sends_parts else {})

    do_HEAD = do_GET

    def _answer(self, status, body, kind, headers=None):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def served(root: Path, *, sends_parts: bool = True) -> AbstractContextManager[str]:
    """The address of the folder."""
    return serving(type("Handler", (_Handler,), {"root": root, "sends_parts": sends_parts}))


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address at which it answers."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
