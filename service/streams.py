"""What goes on for a while: events as they come, a log that grows, a file that is large. What breaks off goes on where it was."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import httpx
from pydantic import TypeAdapter

from service.connection import FIRST_DELAY_SECONDS, Connection, read
from service.errors import ApiUnavailable, MillionwayError
from service.runs import Run, RunEvent, has_ended

READ_SECONDS = 45.0
"""Three heartbeats of an event stream."""
QUIET_SECONDS = 3600.0
"""A log may say nothing for so long."""

_offset: TypeAdapter[int] = TypeAdapter(int)


class Streams(Connection):
    """Each raises ApiUnavailable when the API was away for longer than the connection's retries, and goes on when it comes back before."""

    def stream_events(self, run_id: str, *, after: str | None = None, kinds: list[str] | None = None) -> Iterator[RunEvent]:
        """Until the run has ended. One of kind `truncated` stands for events that are not kept any more."""
        delays = self._delays()
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
            try:
                with self._stream(f"/runs/{run_id}/events", read_seconds=READ_SECONDS, headers=headers, kinds=kinds) as answer:
                    if answer.status_code == httpx.codes.NO_CONTENT:
                        return
                    for fields in _server_sent(answer.iter_bytes()):
                        if fields["event"] == "end":
                            return
                        delays, after = self._delays(), fields.get("id", after)
                        yield RunEvent.model_validate_json(fields["data"])
                time.sleep(FIRST_DELAY_SECONDS)  # the API ends a stream after an hour
            except ApiUnavailable:
                if not _paused(delays):
                    raise

    def log(
        self, run_id: str, *, attempt: int | None = None, name: str | None = None, offset: int = 0, limit: int = 1 << 20
    ) -> tuple[bytes, int]:
        """A piece of log from byte `offset`, and where the next one starts."""
        answer = self._get(f"/runs/{run_id}/logs", attempt=attempt, name=name, offset=offset, limit=limit)
        next_offset = read(lambda _: _offset.validate_python(answer.headers.get("Millionway-Next-Offset")), answer)
        return answer.content, next_offset

    def follow_log(self, run_id: str, attempt: int, *, name: str | None = None, offset: int = 0) -> Iterator[bytes]:
        """The log from byte `offset` as it grows, until the attempt has ended. A line stands for a middle that is not kept."""
        delays = self._delays()
        while True:
            try:
                with self._stream(
                    f"/runs/{run_id}/logs", read_seconds=QUIET_SECONDS, attempt=attempt, name=name, offset=offset, follow=True
                ) as answer:
                    for piece in answer.iter_bytes():
                        delays, offset = self._delays(), offset + len(piece)
                        yield piece
            except ApiUnavailable:
                if not _paused(delays):
                    raise
                continue
            is_over = has_ended(read(Run.model_validate_json, self._get(f"/runs/{run_id}")), attempt)
            piece, end = self.log(run_id, attempt=attempt, name=name, offset=offset)
            if end == offset and is_over:
                return
            offset = end
            yield piece

    def download(self, run_id: str, name: str, target: Path, *, step: int | None = None) -> None:
        """A file of the checkpoint of `step`, or of the export, to `target`: whole, with the checksum that the API names, or not at all."""
        path = f"/runs/{run_id}/export/{name}" if step is None else f"/runs/{run_id}/checkpoints/{step}/files/{name}"
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
        try:
            with temporary.open("w+b") as file:
                etag = self._fetch(path, file)
                file.seek(0)
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if len(etag) == len(sha256) and etag != sha256:
                raise MillionwayError(
                    f"{name} arrived with SHA-256 {sha256}, and {etag} is right: the file is damaged there, or was on its way"
                )
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _fetch(self, path: str, file: IO[bytes]) -> str:
        """Returns the ETag."""
        delays, etag = self._delays(), ""
        while True:
            headers = {"Accept-Encoding": "identity"}
            if etag and file.tell():
                headers |= {"Range": f"bytes={file.tell()}-", "If-Range": f'"{etag}"'}
            try:
                with self._stream(path, read_seconds=READ_SECONDS, headers=headers) as answer:
                    if answer.status_code == httpx.codes.OK:  # another file than the one of which a part is here, or all of it
                        file.seek(0)
                        file.truncate()
                    etag = str(answer.headers.get("ETag", "")).strip('"')
                    for piece in answer.iter_bytes():
                        delays = self._delays()
                        file.write(piece)
                return etag
            except ApiUnavailable:
                if not _paused(delays):
                    raise


def _paused(delays: Iterator[float | None]) -> bool:
    """False when it is time to give up."""
    delay = next(delays)
    if delay is not None:
        time.sleep(delay)
    return delay is not None


def _server_sent(chunks: Iterable[bytes]) -> Iterator[dict[str, str]]:
    """The fields of each event that has data; comments are left out. Our API ends lines with a line feed and nothing else."""
    buffer = b""
    for chunk in chunks:
        *blocks, buffer = (buffer + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.partition(": ")[::2] for line in block.decode().split("\n") if not line.startswith(":"))
            if "data" in fields:
                yield fields
