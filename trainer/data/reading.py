"""Reads ahead in threads, so that slow files overlap with decoding and a read that hangs is a bad image after a while, not a hung run."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from queue import SimpleQueue

from trainer.data.decode import Unreadable
from trainer.data.reader import Reader

AHEAD = 32
"""Most images whose bytes are held, or asked for, at a time."""
_POLL_SECONDS = 0.2


class _Request:
    __slots__ = ("begun", "done", "result", "row")

    def __init__(self, row: int) -> None:
        self.row = row
        self.begun: float | None = None
        self.result: bytes | Unreadable | None = None
        self.done = threading.Lock()
        self.done.acquire()


class ReadAhead:
    """`num_threads` threads of one reader; a thread that hangs in the kernel is left behind and another takes its place."""

    def __init__(self, reader: Reader, timeout_seconds: float, num_threads: int = 4) -> None:
        self._reader, self._timeout = reader, timeout_seconds
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._num_threads = num_threads if reader.takes_threads else 1
        self._threads_started = 0

    def read(self, rows: Iterable[int]) -> Iterator[bytes | Unreadable]:
        """The bytes of each row, in order."""
        while self._threads_started < self._num_threads:
            self._start_thread()
        pending: deque[_Request] = deque()
        for row in rows:
            request = _Request(row)
            pending.append(request)
            self._requests.put(request)
            if len(pending) >= AHEAD:
                yield self._result(pending.popleft())
        while pending:
            yield self._result(pending.popleft())

    def _result(self, request: _Request) -> bytes | Unreadable:
        while not request.done.acquire(timeout=_POLL_SECONDS):
            if request.begun is not None and time.monotonic() - request.begun > self._timeout:
                self._start_thread()
                return Unreadable("timeout", f"it could not be read within {self._timeout:g} s")
        assert request.result is not None
        return request.result

    def _start_thread(self) -> None:
        self._threads_started += 1
        threading.Thread(target=self._work, args=(self._requests,), name="read-ahead", daemon=True).start()

    def _work(self, requests: SimpleQueue[_Request]) -> None:
        while True:
            request = requests.get()
            request.begun = begun = time.monotonic()
            try:
                request.result = self._reader.read(request.row)
            except Unreadable as error:
                request.result = error
            except Exception as error:  # of a library underneath: the image is as lost
                request.result = Unreadable("read error", f"{type(error).__name__}: {error}")
            request.done.release()
            if time.monotonic() - begun > self._timeout:
                return  # another thread has taken this one's place
