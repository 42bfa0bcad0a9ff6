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

    def __init__(self, num_loaders: int, free_cores: int) -> None:
        self._num_loaders, self._free_cores = num_loaders, free_cores
        self._seconds: list[float] = []
        self._made: list[tuple[float, float, int]] = []
        """Of each batch: its seconds, those of them that went into reading, its images."""

    def step(self, batch: Batch, seconds: float) -> Loading | None:
        """`seconds`: of the step once it had its batch. What is to be expected, after FIRST_STEPS."""
        self._seconds.append(seconds)
        self._made.append((batch.seconds, batch.read_seconds, batch.num_images))
        if len(self._made) < FIRST_STEPS:
            return None
        compute, (load_seconds, read_seconds, num_images) = min(self._seconds), min(self._made)
        # Loader processes work while the rank computes; without any it does one after the other.
        waited = max(0.0, load_seconds / self._num_loaders - compute) if self._num_loaders else load_seconds
        return Loading(
            num_images,
            compute + waited,
            waited,
            load_seconds,
            read_seconds,
            self._num_loaders,
            self._free_cores,
            is_expected=True,
        )


def warning(loading: Loading, spec: RunSpec, num_steps: int) -> str | None:
    """What to say of a run of so many steps; None where it would not wait long."""
    return loading.advice(spec) if loading.waited * num_steps > WORTH_SECONDS else None
