"""The end of a log, and what the end of the launcher's says of its ranks."""

from __future__ import annotations

import re
from pathlib import Path

TAIL_BYTES = 64 * 1024
TAIL_LINES = 12

# PyTorch's launcher exits with 1 whatever a rank exited with. It names the rank that failed first, then lists all that failed.
_FIRST_FAILURE = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
_LISTED = re.compile(r"rank\s*: \d+ \(local_rank: (\d+)\)\s+exitcode\s*: (-?\d+)")


def tail(log: Path, num_lines: int = TAIL_LINES) -> str:
    """The last lines of a log; empty where there is none."""
    return "\n".join(end_of(log)[-num_lines:])


def end_of(path: Path) -> list[str]:
    """The lines at the end of a file, TAIL_BYTES of them."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def failed_ranks(launcher_log: Path) -> list[tuple[int, int]]:
    """(local rank, exit code; negative: the signal) of the ranks that the launcher saw fail, the first one first."""
    text = "\n".join(end_of(launcher_log))
    first = [(int(rank), int(code)) for code, rank in _FIRST_FAILURE.findall(text)[-1:]]
    listed = [(int(rank), int(code)) for rank, code in _LISTED.findall(text)]
    return list(dict.fromkeys([*first, *listed]))
