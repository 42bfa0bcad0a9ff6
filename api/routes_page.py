"""The page for people: static files, without a key. What it shows it fetches from the routes beside it, with its user's key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

FILES = {
    "/": "index.html",
    "/page/style.css": "style.css",
    "/page/icon.svg": "icon.svg",
    "/page/app.js": "app.js",
    "/page/calls.js": "calls.js",
    "/page/charts.js": "charts.js",
    "/page/dom.js": "dom.js",
    "/page/live.js": "live.js",
    "/page/log.js": "log.js",
    "/page/run.js": "run.js",
    "/page/run_parts.js": "run_parts.js",
    "/page/runs.js": "runs.js",
    "/page/words.js": "words.js",
    "/page/workers.js": "workers.js",
}
"""By path. Nothing else in the folder is served."""
MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Named here, as the machine's own table of types may have others, and no browser runs a module of a wrong one."""
HEADERS = {
    # Names, labels, reasons and logs are written by others. The page shows them as text alone, and by these headers a browser would run
    # or load nothing that came in with them.
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # after an upgrade no old script meets a new API
}
FOLDER = Path(__file__).parent / "page"

router = APIRouter(tags=["page"])


def _file(name: str) -> Callable[[], Awaitable[FileResponse]]:
    async def file() -> FileResponse:
        path = FOLDER / name
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=HEADERS)

    return file


for _path, _name in FILES.items():
    _type = MEDIA_TYPES[Path(_name).suffix].partition(";")[0]
    router.add_api_route(
        _path,
        _file(_name),
        name=_name,
        response_class=FileResponse,
        description=f"The page's {_name}. No key needed: it holds nothing of a run or its owner.",
        responses={200: {"content": {_type: {"schema": {"type": "string"}}}}},
    )
