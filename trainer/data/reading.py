"""Reads ahead in threads, so that slow files overlap with decoding and a read that hangs is a bad image after a while, not a hung run."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue

from trainer.data.decode import Unreadable
from trainer.data.index import Index
from trainer.data.reader import Reader

PIECE = 8
"""Images that a thread reads at a time: handing over single ones costs as much as reading a small file."""
PIECES_AHEAD = 4
"""Most pieces whose bytes are held, or asked for, at a time."""
_POLL_SECONDS = 0.2


class _Piece:
    """Some rows, read one after another by one thread."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows
        self.results: list[bytes | Unreadable] = []
        self.begun: float | None = None
        """When the row after the last result was begun."""
        self.is_left = False
        """Its thread hung for so long that what it still brings is not wanted."""
        self.has_substitute = False
        """A thread was started in the place of its own, which then ends with it."""
        self.done = threading.Lock()
        self.done.acquire()


class ReadAhead:
    """`num_threads` threads of one reader; a thread that hangs in the kernel is left behind and another takes its place."""

    def __init__(self, reader: Reader, timeout_seconds: float, num_threads: int = 4) -> None:
        self._reader, self._timeout = reader, timeout_seconds
        self._pieces: SimpleQueue[_Piece] = SimpleQueue()
        self._num_threads = num_threads if reader.takes_threads else 1
        self._has_threads = False
        self._asked: list[_Piece] = []
        """All that were asked for and not had, of reads within others too."""

    def read(self, rows: Iterable[int]) -> Iterator[bytes | Unreadable]:
        """The bytes of each row, in order."""
        if not self._has_threads:
            self._has_threads = True
            for _ in range(self._num_threads):
                self._start_thread()
        asked: deque[_Piece] = deque()
        left = iter(rows)
        while True:
            while len(asked) < PIECES_AHEAD and (of_piece := list(itertools.islice(left, PIECE))):
                asked.append(self._ask(of_piece))
            if not asked:
                return
            yield from self._results(asked.popleft())

    def _ask(self, rows: list[int]) -> _Piece:
        piece = _Piece(rows)
        self._asked.append(piece)
        self._pieces.put(piece)
        return piece

    def _results(self, piece: _Piece) -> list[bytes | Unreadable]:
        found: list[bytes | Unreadable] = []
        while not piece.done.acquire(timeout=_POLL_SECONDS):
            hung = [other for other in self._asked if self._hangs(other)]
            for other in hung:  # a thread that hangs over another piece may be the one that this waits for
                if not other.has_substitute:
                    other.has_substitute = True
                    self._start_thread()
            if piece in hung:
                piece.is_left = True
                self._asked.remove(piece)
                results = list(piece.results)
                found += [*results, Unreadable("timeout", f"it could not be read within {self._timeout:g} s")]
                if len(results) + 1 == len(piece.rows):
                    return found
                piece = self._ask(piece.rows[len(results) + 1 :])
        self._asked.remove(piece)
        return found + piece.results

    def _hangs(self, piece: _Piece) -> bool:
        begun = piece.begun  # the thread may set it anew in between
        return begun is not None and time.monotonic() - begun > self._timeout

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, name="read-ahead", daemon=True).start()

    def _work(self) -> None:
        # Where readers are for one thread, each has its own: this may be in the place of one that still hangs.
        reader = self._reader if self._reader.takes_threads else self._reader.another()
        while True:
            piece = self._pieces.get()
            for row in piece.rows:
                piece.begun = time.monotonic()
                result = _read(reader, row)
                if piece.is_left:
                    return  # another thread has taken this one's place
                piece.results.append(result)
            piece.begun = None
            piece.done.release()
            if piece.has_substitute:
                return


def _read(reader: Reader, row: int) -> bytes | Unreadable:
    try:
        return reader.read(row)
    except Unreadable as error:
        return error
    except Exception as error:  # of a library underneath: the image is as lost
        return Unreadable("read error", f"{type(error).__name__}: {error}")


def num_readable(index: Index, rows: Sequence[int], timeout_seconds: float, enough: int | None = None) -> int:
    """How many of these can be read now, past any cache, within `timeout_seconds` in all; it is known of `enough` at the latest."""
    found: SimpleQueue[bool] = SimpleQueue()

    def look(row: int) -> None:
        found.put(not isinstance(_read(Reader(index, patience_seconds=0), row), Unreadable))

    for row in rows:
        threading.Thread(target=look, args=(row,), name="probe", daemon=True).start()
    number, deadline = 0, time.monotonic() + timeout_seconds
    with contextlib.suppress(Empty):
        for _ in rows:
            number += found.get(timeout=max(0.0, deadline - time.monotonic()))
            if number == enough:
                break
    return number
