"""A small HTTP/1.1 client over asyncio streams, light enough that a thousand of them leave the machine to the server under test."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any


class Connection:
    """One keep-alive connection; opened anew when the server closes it."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self._port = port
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **headers}.items())
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body."""
        reader = await self._send(method, path, body, headers or {})
        status, length, chunked = await _head(reader)
        if chunked:
            pieces = [piece async for piece in _chunks(reader)]
            return status, b"".join(pieces)
        return status, await reader.readexactly(length)

    async def stream(self, path: str, headers: dict[str, str] | None = None) -> AsyncIterator[bytes]:
        """The pieces of an answer without an end."""
        reader = await self._send("GET", path, None, headers or {})
        status, _, _ = await _head(reader)
        assert status == 200, status
        async for piece in _chunks(reader):
            yield piece

    async def _send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> asyncio.StreamReader:
        data = b"" if body is None else json.dumps(body).encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        kind = "Content-Type: application/json\r\n" if body is not None else ""
        text = f"{method} {path} HTTP/1.1\r\n{self._headers}{more}{kind}Content-Length: {len(data)}\r\n\r\n".encode() + data
        if self._streams is None or self._streams[1].is_closing() or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(text)
        await writer.drain()
        return reader

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, int, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    return int(head.split(" ", 2)[1]), int(lines.get("content-length", 0)), lines.get("transfer-encoding") == "chunked"


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).strip(), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readline()


class Times:
    """Latencies and unexpected answers by route."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.wrong: dict[str, int] = defaultdict(int)

    async def timed(
        self, route: str, connection: Connection, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, bytes]:
        begun = time.perf_counter()
        try:
            status, answer = await connection.request(
                method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
            )
        except (OSError, asyncio.IncompleteReadError):
            connection.close()
            self.wrong[route] += 1
            return 0, b""
        self.seconds[route].append(time.perf_counter() - begun)
        if status >= 400:
            self.wrong[f"{route} {status} {json.loads(answer).get('detail', '')[:120]}"] += 1
        return status, answer

    def rows(self, duration: float) -> list[dict[str, Any]]:
        """Requests per second and milliseconds by route."""
        rows = []
        for route, seconds in sorted(self.seconds.items()):
            if not seconds:
                continue
            ordered = sorted(seconds)
            at = {share: 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99)}
            rows.append(
                {"route": route, "per_second": len(ordered) / duration, "p50_ms": at[0.5], "p99_ms": at[0.99], "count": len(ordered)}
            )
        return rows


async def at_rate(rate: float, until: float, make: Any) -> None:
    """Call `make(i)` `rate` times a second, whether or not the earlier calls have returned (open loop), until the monotonic time."""
    running: set[asyncio.Task[Any]] = set()
    begun, i = time.monotonic(), 0
    while (now := time.monotonic()) < until:
        while i < (now - begun) * rate:
            task = asyncio.create_task(make(i))
            running.add(task)
            task.add_done_callback(running.discard)
            i += 1
        await asyncio.sleep(0.002)
    if running:
        await asyncio.wait(running, timeout=10)


class Pool:
    """Connections taken and given back; a new one when all are in use."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self._port, self._headers, self._free = port, headers, list[Connection]()

    async def timed(self, times: Times, route: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = self._free.pop() if self._free else Connection(self._port, self._headers)
        try:
            return await times.timed(route, connection, method, path, body, **headers)
        finally:
            self._free.append(connection)
