"""Which rank makes the others wait: a slow disk, a hot GPU, a neighbour on the same cores."""

from __future__ import annotations

from statistics import median_low

RATIO = 1.5
MIN_EXCESS_SECONDS = 0.01
"""Steps of a few milliseconds differ by more than RATIO from mere noise."""
REPORTS = 3
"""So many in a row."""
SILENT_SECONDS = 600.0
"""Between two complaints about one rank."""


class Stragglers:
    """Looks at each report's own seconds per step of all ranks, which all ranks have."""

    def __init__(self, world_size: int) -> None:
        self._slow_reports = [0] * world_size
        self._named_at = [-SILENT_SECONDS] * world_size

    def named(self, seconds_P: list[float], now: float) -> list[tuple[int, float, float]]:
        """(rank, its seconds, the median) of each rank to complain about. `now`: monotonic seconds.

        The lower median: of two ranks, the slow one is compared with the other.
        """
        median = median_low(seconds_P)
        found = []
        for rank, seconds in enumerate(seconds_P):
            slow = seconds > RATIO * median and seconds - median > MIN_EXCESS_SECONDS
            self._slow_reports[rank] = self._slow_reports[rank] + 1 if slow else 0
            if self._slow_reports[rank] >= REPORTS and now - self._named_at[rank] >= SILENT_SECONDS:
                self._named_at[rank] = now
                found.append((rank, seconds, median))
        return found
