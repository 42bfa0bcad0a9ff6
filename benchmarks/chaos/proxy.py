"""Proxies that misbehave on command. Each runs in an event loop of its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Coroutine
from typing import Any

HTTP_FAULTS = ("request_lost", "reply_lost", "duplicated", "late_duplicate", "slow")


class Proxy:
    """TCP from `port` to `target`. `cut()` closes all connections; while `closed`, new ones are refused at once."""

    def __init__(self, target: int) -> None:
        self.target, self.port, self.closed = target, 0, False
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.call(self._listen())

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(lambda: [writer.close() for writer in list(self._writers)])

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if not self.closed:
                await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers.add(their_writer)
        try:
            await asyncio.wait(
                [asyncio.create_task(_pump(reader, their_writer)), asyncio.create_task(_pump(their_reader, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._writers.discard(their_writer)
            their_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


class HttpProxy(Proxy):
    """One request at a time on each connection. `pending` faults hit the next requests that carry a report or a poll."""

    def __init__(self, target: int, seed: int) -> None:
        self.pending: list[str] = []
        self.done: Counter[str] = Counter()
        self._random = random.Random(seed)
        super().__init__(target)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await _message(reader)
            fault = self.pending.pop(0) if self.pending and request.startswith((b"POST", b"PUT")) else ""
            if fault:
                self.done[fault] += 1
            if self.closed or fault == "request_lost":
                return
            if fault == "slow":
                await asyncio.sleep(self._random.uniform(1, 4))
            answer = await self._forward(request)
            if fault == "duplicated":
                answer = await self._forward(request)
            elif fault == "late_duplicate":  # arrives again after younger ones
                self._loop.create_task(self._quietly(request, self._random.uniform(0.5, 5)))
            if fault == "reply_lost":
                return
            writer.write(answer)
            await writer.drain()

    async def _quietly(self, request: bytes, after_seconds: float) -> None:
        await asyncio.sleep(after_seconds)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._forward(request)

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            writer.write(request)
            await writer.drain()
            return await _message(reader)
        finally:
            writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A whole request or answer with Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return head + (await reader.readexactly(length) if length else b"")
