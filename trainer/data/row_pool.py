"""Work on many images in worker processes, which an image that ends or hangs its process does not stop."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TextIO

import cv2
import numpy as np

from trainer.data.index import Index
from trainer.data.reader import Reader
from trainer.errors import BadData

CRASHED = "crashed the decoder"
"""The cause of an image that ended its process, or kept it longer than `image_seconds`."""
_CHUNK = 64
_CHUNK_PATIENCE = 5
"""A chunk may take as long as so many of the slowest single images."""

Work = Callable[[Reader, np.ndarray], Any]
"""Of a reader and rows of its index, [n] int64. A function at the top of its module, or a partial of one: it is sent to the processes."""


def over_rows(
    work: Work,
    index: Index,
    row_n: np.ndarray,
    *,
    num_workers: int,
    progress: Callable[[int, int], None] | None = None,
    image_seconds: float = 60.0,
) -> Iterator[tuple[slice, Any]]:
    """Part of `row_n` and `work`'s result for it, in any order; CRASHED in the place of a result for a part of one image that ends
    its process or keeps it longer than `image_seconds`.

    With 0 workers the work is done here, in order, and nothing is caught. Raises BadData where no process can be started.
    """
    parts = [slice(at, min(at + _CHUNK, len(row_n))) for at in range(0, len(row_n), _CHUNK)]
    done = 0
    for part, result in (
        _in_process(work, index, row_n, parts) if num_workers == 0 else _Pool(work, index, row_n, num_workers, image_seconds).results(parts)
    ):
        done += part.stop - part.start
        if progress is not None:
            progress(done, len(row_n))
        yield part, result


def _in_process(work: Work, index: Index, row_n: np.ndarray, parts: list[slice]) -> Iterator[tuple[slice, Any]]:
    reader = Reader(index)
    for part in parts:
        yield part, work(reader, row_n[part])


class _Pool:
    """Processes for one piece of work."""

    def __init__(self, work: Work, index: Index, row_n: np.ndarray, num_workers: int, image_seconds: float) -> None:
        self.work, self.index, self.row_n, self.num_workers, self.image_seconds = work, index, row_n, num_workers, image_seconds

    def results(self, parts: list[slice]) -> Iterator[tuple[slice, Any]]:
        """Two parts wait at each process. A pool that breaks does not say which part did it: those under way are suspects."""
        waiting = iter(parts)
        seconds = _CHUNK_PATIENCE * self.image_seconds
        more = True
        while more:
            suspects: list[slice] = []
            executor = self._start(self.num_workers)
            try:
                pending: dict[Future[Any], slice] = {}
                while not suspects:
                    while len(pending) < 2 * self.num_workers and (part := next(waiting, None)) is not None:
                        if not self._submit(executor, pending, part, seconds):
                            suspects.append(part)
                            break
                    if not pending:
                        break
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        part = pending.pop(future)
                        if isinstance(future.exception(), BrokenProcessPool):
                            suspects.append(part)
                        else:
                            yield part, future.result()
                for future, part in pending.items():  # of a broken pool: each ends, with a result or without
                    if isinstance(future.exception(), BrokenProcessPool):
                        suspects.append(part)
                    else:
                        yield part, future.result()
                more = bool(suspects)
            finally:
                executor.shutdown(cancel_futures=True)
            yield from self._one_by_one(suspects)

    def _submit(self, executor: ProcessPoolExecutor, pending: dict[Future[Any], slice], part: slice, seconds: float) -> bool:
        try:
            pending[executor.submit(_work_on, self.row_n[part], seconds)] = part
        except BrokenProcessPool:
            return False
        return True

    def _one_by_one(self, suspects: list[slice]) -> Iterator[tuple[slice, Any]]:
        executor = None
        try:
            for at in (at for part in suspects for at in range(part.start, part.stop)):
                executor = executor or self._start(1)
                one = slice(at, at + 1)
                try:
                    yield one, executor.submit(_work_on, self.row_n[one], self.image_seconds).result()
                except BrokenProcessPool:
                    executor.shutdown()
                    executor = None
                    yield one, CRASHED
        finally:
            if executor is not None:
                executor.shutdown(cancel_futures=True)

    def _start(self, num_workers: int) -> ProcessPoolExecutor:
        # Not a fork: of a process with threads (gloo, OpenMP, CUDA) it may hang.
        executor = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), _start_process, (self.work, self.index))
        try:
            executor.submit(os.getpid).result()
        except BrokenProcessPool:
            executor.shutdown()
            raise BadData(
                "a process that reads images ended as it started: give it more memory, or do without such processes (0 workers)"
            ) from None
        return executor


_work: Work
_reader: Reader
_null: TextIO


def _start_process(work: Work, index: Index) -> None:
    global _work, _reader, _null
    cv2.setNumThreads(0)
    os.setpgid(0, 0)  # Ctrl-C, and a SIGTERM to a job's group, are for the parent
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(0)), daemon=True).start()  # else it outlives a parent that is killed
    _null = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for as long as the process lives
    os.dup2(_null.fileno(), 2)  # libpng's and libjpeg's complaints, in the middle of the progress; what they mean is counted
    _work, _reader = work, Reader(index)


def _work_on(row_n: np.ndarray, seconds: float) -> Any:
    faulthandler.dump_traceback_later(seconds, exit=True, file=_null)  # a thread in C: it ends a process that hangs within a decoder
    try:
        return _work(_reader, row_n)
    finally:
        faulthandler.cancel_dump_traceback_later()
