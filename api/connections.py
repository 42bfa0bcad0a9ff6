"""Connections on which no request comes: uvicorn keeps one for ever that sends the head of a request slowly, or never."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 10.0
"""Within which the head of a request must have arrived."""
HEAD_BYTES = 64 << 10


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type] # one of uvicorn's two, which it chooses as it starts
    """Closed when a head is too slow, or larger than any that api/auth.py would let pass."""

    _waiting: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def data_received(self, data: bytes) -> None:
        is_body = self.cycle is not None and self.cycle.more_body  # what was refused before it was read: it has the time, but is no head
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # a request is being answered
            self._stop_waiting()
            return
        self._head_bytes += 0 if is_body else len(data)
        if self._head_bytes > HEAD_BYTES:
            self.transport.close()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        self._head_bytes = 0
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
