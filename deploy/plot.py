"""A curve in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

HEIGHT = 10
EIGHTHS = " " + "".join(map(chr, range(0x2581, 0x2589)))
"""A character cell filled from below, in eighths."""


def plot(values: Sequence[float], *, height: int = HEIGHT, blocks: bool = True) -> list[str]:
    """One line per row, the highest first, with the largest and the smallest value at the left; one column per value.

    A value that is no number leaves its column empty. `blocks`: whether the terminal shows block characters; else `#` stands for them.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    # The smallest value fills one eighth, so that it is seen.
    filled = [1 + round((value - low) / (high - low or 1.0) * (8 * height - 1)) if math.isfinite(value) else 0 for value in values]
    lines = []
    for row in reversed(range(height)):
        label = {height - 1: f"{high:.5g}", 0: f"{low:.5g}"}.get(row, "")
        cells = [min(8, max(0, column - 8 * row)) for column in filled]
        lines.append(
            f"{label:>10} " + "".join(EIGHTHS[cell] if blocks else "#" if cell >= 4 or (cell and not row) else " " for cell in cells)
        )
    return lines
