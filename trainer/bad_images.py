"""The images that a run cannot use: listed and warned of, and what ends the run where there are too many.

Two ends: BadData, for good, where the images are damaged; StorageError, which is tried again, where what they lie on is away.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from service.spec import RunSpec
from trainer.data.index import Index, evenly_spaced
from trainer.data.quarantine import Quarantine, by_cause
from trainer.data.reading import num_readable
from trainer.data.tasks import Bad
from trainer.errors import BadData, StorageError
from trainer.process import Process
from trainer.spool import EventSpool, NullSpool
from trainer.watch import Watch

MAX_BAD = 10
"""So many images that cannot be read never end a run, whatever share they are of what it has read."""
STORAGE_CAUSES = frozenset({"missing", "forbidden", "read error", "timeout"})
"""Of which the images themselves may be innocent."""
MOST_OF_THE_BAD, MOST_OF_THE_READ = 0.9, 0.5
"""Such shares of causes in the storage raise the question whether it is there at all: then many are found at once, and for one reason."""
PROBES, PROBE_SECONDS = 8, 10.0
"""So many images are tried, for so long in all."""
PATIENCE_SECONDS = 60.0
"""How long a rank waits for the storage before it ends: attempts that follow at once would spend `retries.infrastructure` in no time."""
POLL_SECONDS = 2.0


class BadImages:
    """Counts on every rank what it reads; the ranks find out together, in `check`, how many images are bad."""

    def __init__(self, index: Index, spec: RunSpec, process: Process, path: Path, spool: EventSpool | NullSpool, watch: Watch) -> None:
        """`path`: of the quarantine, which the first rank keeps."""
        self._index, self._spec, self._process, self._spool, self._watch = index, spec, process, spool, watch
        self.quarantine = Quarantine(path, index) if process.is_first else None
        self._num_bad, self._num_read, self._num_read_before = 0, 0, 0
        self._new: list[Bad] = []
        self._has_warned_of_evaluation = False

    def count(self, num_read: int, bad: Sequence[Bad]) -> None:
        """What this rank has read, and what of it, and of what was to replace it, could not be used."""
        self._num_read += num_read
        self._num_bad += len(bad)
        self._new += bad

    def check(self) -> None:
        """Every rank calls. Lists and warns of what is new. Raises BadData or StorageError on every rank alike."""
        num_storage = sum(bad.cause in STORAGE_CAUSES for bad in self._new)
        mine = [self._num_bad, self._num_read, len(self._new), num_storage, self._num_read - self._num_read_before]
        num_bad, num_read, num_new, num_storage, num_new_read = (round(number) for number in self._over_ranks(mine))
        self._num_read_before = self._num_read
        is_too_bad = num_bad > max(MAX_BAD, self._spec.data.max_bad_share * num_read)
        # Without the second condition an outage late in a long run would be as many replaced images as the share allows.
        is_sudden = num_storage > MOST_OF_THE_READ * num_new_read
        if num_storage > max(MAX_BAD, MOST_OF_THE_BAD * num_new) and (is_too_bad or is_sudden):
            self._check_storage(num_storage, num_new_read)
        if num_new:
            self._list()
        if is_too_bad:
            where = f": {self.quarantine.path} lists them ({self.quarantine.summary()})" if self.quarantine else ""
            raise BadData(
                f"{num_bad} of the {num_read} images read so far could not be used, more than data.max_bad_share "
                f"{self._spec.data.max_bad_share:g}{where}; repair or remove them, or raise it"
            )

    def warn_of_evaluation(self, unreadable: Mapping[str, str]) -> None:
        """Once: name and cause of the evaluation's images that grey ones stand for."""
        if not unreadable or self._has_warned_of_evaluation:
            return
        self._has_warned_of_evaluation = True
        first = ", ".join(f"{name} ({cause})" for name, cause in islice(unreadable.items(), 3))
        more = f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
        self._spool.append(
            "warned",
            message=f"{first}{more} of the evaluation cannot be used: grey images stand for them, and count in the kNN accuracy; repair or "
            f"remove them ({by_cause(unreadable.values())})",
        )

    def _over_ranks(self, numbers: Sequence[float]) -> list[float]:
        """Their sums."""
        sums = torch.tensor(numbers, dtype=torch.float64, device=self._process.device)
        if self._process.world_size > 1:
            dist.all_reduce(sums)
        return sums.tolist()  # type: ignore[no-any-return]

    def _check_storage(self, num_storage: int, num_read: int) -> None:
        """Every rank calls. Raises StorageError on all ranks where one that met bad images can read most of them now, or none of others."""
        phase = self._watch.phase
        self._watch.enter("storage")  # tries and waits for longer than a step may take
        mine = [bad.row for bad in self._new if bad.cause in STORAGE_CAUSES]
        again = [mine[i] for i in evenly_spaced(len(mine), PROBES)]
        is_back = 2 * num_readable(self._index, again, PROBE_SECONDS) > len(again)
        is_away = bool(mine) and not is_back and self._is_away()
        any_back, any_away = self._over_ranks([is_back, is_away])
        if not any_back and not any_away:
            self._watch.enter(phase)
            return
        message = f"the images of {self._index.root!r} could not be read, {num_storage} failures in the last {num_read} images"
        if self._new:
            message += f" (here {by_cause(bad.cause for bad in self._new)})"
        message += ", nor could others all over it: look whether the storage is there and mounted" if any_away else ", and now can be"
        if self.quarantine is not None:
            self.quarantine.forget(STORAGE_CAUSES)
            if any_away:
                self._spool.append("warned", message=f"{message}; the attempt waits for it, {PATIENCE_SECONDS:g} s at most")
        deadline, late = time.monotonic() + PATIENCE_SECONDS, 0.0
        while any_away and not late and not self._watch.stop_agreed(now=True):
            self._watch.beat()
            time.sleep(POLL_SECONDS)
            is_away = is_away and self._is_away()
            any_away, late = self._over_ranks([is_away, time.monotonic() >= deadline])
        # Even where it is back: what was made of grey images is not to be kept.
        raise StorageError(f"{message}; another attempt goes on from the last checkpoint")

    def _is_away(self) -> bool:
        """Whether none of some images, spread over all, can be read."""
        gone_n = self._index.gone_n
        row_n = np.arange(len(self._index)) if gone_n is None else np.flatnonzero(~gone_n)
        return not num_readable(self._index, row_n[evenly_spaced(len(row_n), PROBES)].tolist(), PROBE_SECONDS, enough=1)

    def _list(self) -> None:
        """Every rank calls: the first one writes down what all have found."""
        found: list[list[Bad]] = [self._new]
        if self._process.world_size > 1:
            found = [[] for _ in range(self._process.world_size)]
            dist.all_gather_object(found, self._new)
        self._new = []
        if self.quarantine is None:
            return
        if new := self.quarantine.add(bad for of_rank in found for bad in of_rank):
            more = f" and {len(new) - 3} more" if len(new) > 3 else ""
            self._spool.append(
                "warned",
                message=f"{', '.join(new[:3])}{more} cannot be used, and others take their place; {self.quarantine.path} lists all "
                f"({self.quarantine.summary()})",
            )
