"""Loader processes: a dataset's answers to tasks, in order, and as before where a process dies."""

from __future__ import annotations

import atexit
import faulthandler
import itertools
import logging
import os
import signal
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

log = logging.getLogger(__name__)

T = TypeVar("T")
MOST_DEATHS = 3
"""Deaths of loader processes in a row, without a batch in between, that are answered with new ones."""


def in_order(dataset: Dataset[T], tasks: Iterator[Any], num_workers: int) -> Iterator[T]:
    """The dataset's answer to each task, in order; computed in this process or by `num_workers` others.

    Where one of those dies (the system's memory ran out, a decoder crashed) all are replaced and the tasks that were not answered are
    given out again. Raises RuntimeError after MOST_DEATHS.
    """
    if num_workers == 0:
        cv2.setNumThreads(0)
        yield from (dataset[task] for task in tasks)
        return
    given: deque[Any] = deque()
    deaths = 0
    while True:
        tasks = itertools.chain(list(given), tasks)  # what was not even given out again is still in the older chain
        given.clear()
        answers = _processes(dataset, _noting(tasks, given), num_workers)
        try:
            for answer in answers:
                given.popleft()
                deaths = 0
                yield answer
            return
        except (RuntimeError, OSError, EOFError) as error:  # also of the connection over which it was to hand out its tensors
            deaths += 1
            if not _has_died(answers) or deaths > MOST_DEATHS:
                raise
            log.warning("a loader process died (%s): new ones go on with its batch", " ".join(str(error).split()))


def _noting(tasks: Iterator[Any], given: deque[Any]) -> Iterator[Any]:
    for task in tasks:
        given.append(task)
        yield task


def _has_died(answers: Any) -> bool:
    """Whether one of DataLoader's processes has ended, or ends just now."""
    return bool(wait([process.sentinel for process in answers._workers], timeout=1.0))


def _processes(dataset: Dataset[T], tasks: Iterator[Any], num_workers: int) -> Any:
    loader = DataLoader(
        dataset,
        batch_size=None,  # a task is a batch
        sampler=tasks,  # type: ignore[arg-type]
        num_workers=num_workers,
        generator=torch.Generator(),  # else it draws from the global one, which a resume puts back
        multiprocessing_context="spawn",  # a fork of a process with threads (gloo, OpenMP, CUDA) may hang
        worker_init_fn=_start_loader_process,
        collate_fn=_unchanged,
        pin_memory=torch.cuda.is_available(),
    )
    answers = iter(loader)
    # DataLoader would raise wherever this process is when a loader process dies, in a collective for example; asking for the next
    # batch finds it out as well.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return answers


def _start_loader_process(_: int) -> None:
    cv2.setNumThreads(0)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # as its rank (trainer/__main__.py)
    # Its own process group: a SIGTERM to the job's group means "stop with a checkpoint", and the last batches need their
    # loader. It ends with its parent: torch's worker loop looks for that.
    os.setpgid(0, 0)
    # Skip the interpreter's finalisation: it aborts the process where the thread that shares a prefetched batch is still in C++.
    atexit.register(os._exit, 0)


def _unchanged(item: T) -> T:
    return item
