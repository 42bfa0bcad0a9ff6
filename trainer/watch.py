"""What a rank does after each step or batch: it shows its worker that it lives and, with the other ranks, looks whether to stop."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.distributed as dist

from trainer.beats import Beats
from trainer.process import Process

AGREE_SECONDS = 5.0
"""About the longest time between two looks."""


class StopAgreed(Exception):
    """Some rank was asked to stop, and all ranks know it: raised on all of them at the same batch."""


class Watch:
    """A stop is asked for by SIGTERM, or by the stop file of the attempt on any node.

    Ranks see either at different times, so they agree by a collective, at calls that follow from times which were agreed
    upon before: never from a rank's own clock.
    """

    def __init__(self, process: Process, beats: Beats, stop_file: Path) -> None:
        self._process, self._beats, self._stop_file = process, beats, stop_file
        self._start_counting(most_calls=1)

    @property
    def phase(self) -> str:
        return self._beats.phase

    def enter(self, phase: str) -> None:
        """A phase begins on every rank (service.events.Phase): its batches take another time than the last one's."""
        self._beats.enter(phase)
        self._start_counting(most_calls=1)

    def beat(self) -> None:
        """A sign of life where this rank works alone or the work is short."""
        self._beats.beat()

    def batch(self) -> None:
        """After a batch outside training. Every rank calls, equally often. Raises StopAgreed on all or none."""
        self._beats.beat()
        if self.stop_agreed():
            raise StopAgreed

    def step(self, step: int, *, agree: bool) -> bool:
        """After a training step: whether all ranks are to stop after it. They agree now with `agree`, else when it is time."""
        self._beats.beat(step)
        return self.stop_agreed(now=agree)

    def stop_agreed(self, *, now: bool = False) -> bool:
        """Whether any rank was asked to stop, if it is time to agree; every rank calls."""
        self._calls += 1
        if not now and self._calls < self._most_calls:
            return False
        asked = self._process.stop_requested or self._stop_file.exists()
        seconds = time.monotonic() - self._counting_since
        agreed = torch.tensor([float(asked), seconds], dtype=torch.float64, device=self._process.device)
        if self._process.world_size > 1:
            dist.all_reduce(agreed, dist.ReduceOp.MAX)
        stop, slowest_seconds = agreed.tolist()
        fitting = int(AGREE_SECONDS * self._calls / max(1e-9, slowest_seconds))
        # At most twice as many as the last time: the first batches may be the quick ones.
        self._start_counting(most_calls=max(1, min(fitting, 2 * self._calls)))
        return stop > 0

    def _start_counting(self, most_calls: int) -> None:
        self._most_calls, self._calls, self._counting_since = most_calls, 0, time.monotonic()
