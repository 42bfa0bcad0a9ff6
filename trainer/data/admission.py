"""Whether the loader can keep up, from the first steps of a run: what they computed for, and how long their batches took to make.

Nothing is computed for it, so it changes no bit of the run. An estimate before them would have to guess what a step takes beyond the
encoder's forward pass: gradients, their exchange, the classifier.
"""

from __future__ import annotations

from service.spec import RunSpec
from trainer.data.advice import Loading
from trainer.data.loader import Batch

FIRST_STEPS = 4
WORTH_SECONDS = 60.0
"""A run that would wait less than this in all is let be."""


class Admission:
    """Takes the first steps of a rank; the quickest counts, as others warm up or share the cores with what else starts."""

    def __init__(self, spec: RunSpec, num_loaders: int, free_cores: int) -> None:
        self._spec, self._num_loaders, self._free_cores = spec, num_loaders, free_cores
        self._seconds: list[float] = []
        self._batches: list[Batch] = []

    def step(self, batch: Batch, seconds: float) -> Loading | None:
        """`seconds`: of the step once it had its batch. What is to be expected, after FIRST_STEPS."""
        self._seconds.append(seconds)
        self._batches.append(batch)
        if len(self._batches) < FIRST_STEPS:
            return None
        quickest, compute = min(self._batches, key=lambda batch: batch.seconds), min(self._seconds)
        # Loader processes work while the rank computes; without any it does one after the other.
        waited = max(0.0, quickest.seconds / self._num_loaders - compute) if self._num_loaders else quickest.seconds
        return Loading(
            quickest.num_images,
            compute + waited,
            waited,
            quickest.seconds,
            quickest.read_seconds,
            self._num_loaders,
            self._free_cores,
            is_expected=True,
        )


def warning(loading: Loading, spec: RunSpec, num_steps: int) -> str | None:
    """What to say of a run of so many steps; None where it would not wait long."""
    return loading.advice(spec) if loading.waited * num_steps > WORTH_SECONDS else None
