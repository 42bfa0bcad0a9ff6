"""Whether a job still moves, from the beats of this node's ranks (service.layout.Beat).

Time is counted as it is observed: what passes while the whole machine, or the worker, is frozen counts for little.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from service.layout import AttemptDir, Beat, read_beat

TRAINING = "training"
USUAL_STEPS = 20
"""A step may take so many times as long as usual."""
OTHER_PHASES = 15
"""A piece of work of another phase (a dataset's listing, a checkpoint), and the first step, may take so many times the limit of a step."""
LOOK_SECONDS = 1.0
MAX_OBSERVED_SECONDS = 5.0
"""Between two looks."""


@dataclass(frozen=True)
class Stall:
    reason: str
    rank: int
    """The one that did least."""


class StallDetector:
    """Looks at the beats about once a second. One rank that hangs keeps the others from moving, so all standing still is the sign."""

    def __init__(self, directory: AttemptDir, ranks: Sequence[int], stall_seconds: float) -> None:
        self._directory, self._ranks, self._stall_seconds = directory, ranks, stall_seconds
        self._beats: dict[int, Beat | None] = dict.fromkeys(ranks)
        self._step_seconds: deque[float] = deque(maxlen=101)
        self._looked_at = self._moved_at = time.monotonic()
        self._still_seconds = 0.0

    def look(self) -> Stall | None:
        """Call it often."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return None
        self._still_seconds += min(now - self._looked_at, MAX_OBSERVED_SECONDS)
        self._looked_at = now
        before, self._beats = self._beats, {rank: self._read(rank) for rank in self._ranks}
        if any(_moved(before[rank], self._beats[rank]) for rank in self._ranks):
            self._count_steps(before, now)
            self._moved_at, self._still_seconds = now, 0.0
            return None
        limit, usual = self._limit()
        if self._still_seconds <= limit:
            return None
        last = min(self._ranks, key=lambda rank: _done(self._beats[rank]))
        beat = self._beats[last]
        where = f"in phase {beat.phase} at step {beat.step}" if beat else "before any rank had begun"
        return Stall(
            f"no rank of this node moved for {self._still_seconds:.0f} s {where} ({usual}); the stacks are in the ranks' logs", last
        )

    def _read(self, rank: int) -> Beat | None:
        try:
            return read_beat(self._directory.beat(rank))
        except OSError:  # a network file system that hiccups
            return self._beats[rank]

    def _limit(self) -> tuple[float, str]:
        """Seconds, and what they are measured by."""
        in_training = all(beat is not None and beat.phase == TRAINING for beat in self._beats.values())
        if in_training and self._step_seconds:  # the first step may have to compile kernels and set up connections
            usual = median(self._step_seconds)
            return max(self._stall_seconds, USUAL_STEPS * usual), f"a step takes {usual:.3g} s"
        return OTHER_PHASES * self._stall_seconds, f"the limit is {OTHER_PHASES * self._stall_seconds:.0f} s"

    def _count_steps(self, before: dict[int, Beat | None], now: float) -> None:
        for rank in self._ranks:
            old, new = before[rank], self._beats[rank]
            if old and new and old.phase == new.phase == TRAINING and new.step > old.step:
                self._step_seconds.append((now - self._moved_at) / (new.step - old.step))
                return


def _moved(before: Beat | None, after: Beat | None) -> bool:
    """In training only steps count: a rank that tries the same again and again beats, too."""
    if before is None or after is None or before.phase != after.phase:
        return before != after
    return before.step != after.step if after.phase == TRAINING else before.count != after.count


def _done(beat: Beat | None) -> tuple[int, int]:
    return (beat.step, beat.count) if beat else (-1, -1)
