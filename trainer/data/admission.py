"""Whether the loader can keep up, before the first step: by the time that its first batch took, and that the encoder's first pass took.

Nothing is computed for it, so it costs nothing and changes no bit of the run; and the first batch is made with all loader processes of
all ranks of the machine at work, as later ones are.
"""

from __future__ import annotations

from service.spec import RunSpec
from trainer.data.advice import Loading
from trainer.data.loader import Batch

STEP_PER_FORWARD = 3.0
"""A training step computes about so many times what a forward pass does: gradients of weights and of activations cost one each. What the
classifier and the exchange of gradients take comes on top, so a rank needs fewer images than this says, not more."""
WORTH_SECONDS = 60.0
"""A run that would wait less than this in all is let be."""


def expected_loading(batch: Batch, forward_seconds: float, spec: RunSpec, num_loaders: int, free_cores: int) -> Loading:
    """Of a rank's step. `batch`: its first one; `forward_seconds`: of the encoder, for one view."""
    compute = STEP_PER_FORWARD * forward_seconds * len(batch.classes)
    # Loader processes work while the rank computes; without any it does one after the other.
    waited = max(0.0, batch.seconds / num_loaders - compute) if num_loaders else batch.seconds
    num_images = len(batch.classes) // spec.augmentation.views_per_image
    return Loading(num_images, compute + waited, waited, batch.seconds, batch.read_seconds, num_loaders, free_cores, is_expected=True)


def warning(loading: Loading, spec: RunSpec, num_steps: int) -> str | None:
    """What to say of a run of so many steps before it begins; None where it would not wait long."""
    return loading.advice(spec) if loading.waited * num_steps > WORTH_SECONDS else None
