"""Checkpoints and exports, streamed from the workers' runs directory where the API sees it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import FileResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException

from api.auth import OwnRun
from api.problem_docs import documents
from api.problems import RANGE_NOT_SATISFIABLE
from api.queries import refuse_unknown_query
from api.routes_events import Step
from api.state import SettingsDep, StoreDep
from service.errors import CheckpointNotFound, FilesNotHere, Forbidden, RunNotFound, Unauthenticated
from service.layout import RunDir
from service.protocol import StoredFile
from service.stored_files import find_file, list_files

router = APIRouter(prefix="/runs/{run_id}", tags=["files"], dependencies=[Depends(refuse_unknown_query)])

KNOWN = (Unauthenticated, Forbidden, RunNotFound, FilesNotHere)
BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {name: {"schema": {"type": "string"}} for name in ("ETag", "Content-Disposition", "Last-Modified")},
    },
    206: {"description": "The bytes that Range asks for"},
    304: {"description": "If-None-Match names the ETag"},
}
IfNoneMatch = Annotated[str | None, Header(description="ETags: the file is not sent if it still has one of them")]


async def _checkpoint(run: OwnRun, step: Step, store: StoreDep) -> Path:
    """Its folder below the runs directory."""
    if all(checkpoint.step != step for checkpoint in await store.checkpoints(run.id)):
        raise CheckpointNotFound(run.id, step)
    return RunDir(Path(run.id)).checkpoint(step)


CheckpointDir = Annotated[Path, Depends(_checkpoint)]


@router.get("/checkpoints/{step}/files", responses=documents(*KNOWN, CheckpointNotFound))
async def checkpoint_files(folder: CheckpointDir, settings: SettingsDep) -> list[StoredFile]:
    """The files of a checkpoint, with the checksums of its manifest."""
    return await asyncio.to_thread(list_files, settings.runs_dir, folder)


@router.get("/export", responses=documents(*KNOWN))
async def export_files(run: OwnRun, settings: SettingsDep) -> list[StoredFile]:
    """The files of the exported backbone, in the form that timm loads."""
    return await asyncio.to_thread(list_files, settings.runs_dir, RunDir(Path(run.id)).export)


@router.head("/checkpoints/{step}/files/{name}", include_in_schema=False)
@router.get(
    "/checkpoints/{step}/files/{name}",
    response_class=Response,
    responses={**BYTES, **documents(*KNOWN, CheckpointNotFound, RANGE_NOT_SATISFIABLE)},
)
async def checkpoint_file(
    folder: CheckpointDir, name: str, request: Request, settings: SettingsDep, if_none_match: IfNoneMatch = None
) -> Response:
    """One file of a checkpoint: Range and If-Range resume a download that broke off."""
    return await _file(settings.runs_dir, folder, name, request, if_none_match)


@router.head("/export/{name}", include_in_schema=False)
@router.get("/export/{name}", response_class=Response, responses={**BYTES, **documents(*KNOWN, RANGE_NOT_SATISFIABLE)})
async def export_file(run: OwnRun, name: str, request: Request, settings: SettingsDep, if_none_match: IfNoneMatch = None) -> Response:
    """One file of the exported backbone: Range and If-Range resume a download that broke off."""
    return await _file(settings.runs_dir, RunDir(Path(run.id)).export, name, request, if_none_match)


async def _file(runs_dir: Path | None, folder: Path, name: str, request: Request, if_none_match: str | None) -> Response:
    path, file, stat = await asyncio.to_thread(find_file, runs_dir, folder, name)
    headers = {"ETag": f'"{file.sha256}"'} if file.sha256 else {}
    # Never as a page: whatever a file holds, no browser is to run it.
    answer = FileResponse(path, headers=headers, media_type="application/octet-stream", filename=name, stat_result=stat)
    etags = [etag.strip().removeprefix("W/") for etag in (if_none_match or "").split(",")]
    if "*" in etags or answer.headers["etag"] in etags:
        return Response(status_code=304, headers={"ETag": answer.headers["etag"]})
    _look_at_range(request, file.num_bytes)
    return answer


def _look_at_range(request: Request, num_bytes: int) -> None:
    """Starlette answers a range that it cannot serve in plain text: this makes it a problem document. Several ranges at once, and what
    is no range, are ignored, as RFC 9110 allows."""
    asked = re.fullmatch(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))", request.headers.get("range", "").replace(" ", ""))
    if asked is None or (asked[2] and int(asked[2]) < int(asked[1])):
        del MutableHeaders(scope=request.scope)["range"]
    elif int(asked[1] or 0) >= num_bytes or asked[3] == "0":
        raise HTTPException(416, f"the file has {num_bytes} bytes: none is in the range", headers={"Content-Range": f"bytes */{num_bytes}"})
