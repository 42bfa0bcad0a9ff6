"""Loader processes: a dataset's answers to tasks, in order, and as before where a process dies."""

from __future__ import annotations

import atexit
import faulthandler
import itertools
import logging
import os
import signal
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from trainer.data.tasks import Made, MadeInMemory, Task

log = logging.getLogger(__name__)

MOST_DEATHS = 3
"""Deaths of loader processes in a row, without a batch in between or an image found that is to blame, that are answered with new ones."""
_PREFETCH = 2
"""Tasks that each process is given ahead."""
DEATHS_OF_A_CRASHER = 2
"""So often must processes have died over an image for it to be taken for the reason; memory may run out over any, once. A decoder that hung
is known by the signal that ended it."""


def in_order(dataset: MadeInMemory, tasks: Iterator[Task], num_workers: int, most_images: int) -> Iterator[Made]:
    """The dataset's answer to each task, of at most `most_images`, in order; computed in this process or by `num_workers` others.

    The pixels of an answer stand until the next but one is asked for: clone what is to be kept. Of loader processes, on a machine with a
    GPU, they are copied into pinned memory of their own.

    Where one of those dies (the system's memory ran out, a decoder crashed) all are replaced and the tasks that were not answered are
    given out again; an image over which they die again counts as one that cannot be read. Raises RuntimeError after MOST_DEATHS.
    """
    # Of other processes so many are under way, and besides them an answer is in use and the one before it may still be.
    num_slots = _PREFETCH * num_workers + 2
    dataset.allocate(num_slots, most_images)
    tasks = (replace(task, slot=number % num_slots) for number, task in enumerate(tasks))
    try:
        yield from _in_this_process(dataset, tasks) if num_workers == 0 else _in_others(dataset, tasks, num_workers)
    finally:
        dataset.memory.close()


def _in_this_process(dataset: MadeInMemory, tasks: Iterator[Task]) -> Iterator[Made]:
    cv2.setNumThreads(0)
    for task in tasks:
        yield dataset.with_pixels(dataset[task], task)


def _in_others(dataset: MadeInMemory, tasks: Iterator[Task], num_workers: int) -> Iterator[Made]:
    given: deque[Task] = deque()
    deaths = 0
    blamed: Counter[int] = Counter()
    with tempfile.TemporaryDirectory(prefix="millionway-loader-") as folder:
        notes = dataset.decoder.notes = Path(folder) / "decoding"
        while True:
            notes.write_bytes(bytes(8 * num_workers))
            tasks = itertools.chain(list(given), tasks)  # what was not even given out again is still in the older chain
            given.clear()
            answers = _processes(dataset, _noting(tasks, given), num_workers)
            try:
                for answer in answers:
                    made = dataset.with_pixels(answer, given.popleft())
                    deaths = 0
                    yield made.pinned() if torch.cuda.is_available() else made
                return
            except (RuntimeError, OSError, EOFError) as error:  # also of the connection over which it was to hand out its tensors
                dead = _dead(answers)
                if not dead:
                    raise
                answers._shutdown_workers()  # the others hold memory that may be what was short, and take notes
                deaths += 1
                at = np.fromfile(notes, np.int64) - 1
                for number in dead:
                    hung = answers._workers[number].exitcode == -signal.SIGALRM  # memory that ran out is no reason for that
                    blamed[int(at[number])] += DEATHS_OF_A_CRASHER if hung else 1
                del blamed[-1]  # it died over no image
                crashers = frozenset(row for row, count in blamed.items() if count >= DEATHS_OF_A_CRASHER)
                if crashers != dataset.decoder.crashers:
                    dataset.decoder.crashers, deaths = crashers, 0
                if deaths > MOST_DEATHS:
                    raise
                log.warning("a loader process died (%s): new ones go on with its batch", " ".join(str(error).split()))


def _noting(tasks: Iterator[Task], given: deque[Task]) -> Iterator[Task]:
    for task in tasks:
        given.append(task)
        yield task


def _dead(answers: Any) -> list[int]:
    """Numbers of DataLoader's processes that have ended, or end just now."""
    sentinels = [process.sentinel for process in answers._workers]
    ended = wait(sentinels, timeout=1.0)
    return [number for number, sentinel in enumerate(sentinels) if sentinel in ended]


def _processes(dataset: MadeInMemory, tasks: Iterator[Task], num_workers: int) -> Any:
    loader = DataLoader(
        dataset,
        batch_size=None,  # a task is a batch
        sampler=tasks,  # type: ignore[arg-type]
        num_workers=num_workers,
        generator=torch.Generator(),  # else it draws from the global one, which a resume puts back
        multiprocessing_context="spawn",  # a fork of a process with threads (gloo, OpenMP, CUDA) may hang
        worker_init_fn=_start_loader_process,
        collate_fn=_unchanged,
        prefetch_factor=_PREFETCH,
    )
    answers = iter(loader)
    # DataLoader would raise wherever this process is when a loader process dies, in a collective for example; asking for the next
    # batch finds it out as well.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return answers


def _start_loader_process(_: int) -> None:
    cv2.setNumThreads(0)
    faulthandler.register(signal.SIGUSR1, file=sys.stdout, all_threads=True)  # as its rank (trainer/__main__.py)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends a process whose decoder hangs (decoder.py)
    # Its own process group: a SIGTERM to the job's group means "stop with a checkpoint", and the last batches need their
    # loader. It ends with its parent: torch's worker loop looks for that.
    os.setpgid(0, 0)
    # Skip the interpreter's finalisation: it aborts the process where the thread that shares a prefetched batch is still in C++.
    atexit.register(os._exit, 0)


def _unchanged(item: Made) -> Made:
    return item
