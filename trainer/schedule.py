"""How long a run is and how fast it learns: pure functions of the specification and the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.spec import RunSpec
from trainer.data.sampler import steps_per_epoch


@dataclass(frozen=True)
class Plan:
    """A run's length in steps."""

    num_steps: int
    steps_per_epoch: int
    warmup_steps: int
    checkpoint_every: float
    """Steps between checkpoints; may be fractional."""
    evaluate_every: int
    """Steps between evaluations."""

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step / self.steps_per_epoch

    @property
    def num_epochs(self) -> float:
        return self.num_steps / self.steps_per_epoch


def make_plan(spec: RunSpec, num_images: int) -> Plan:
    per_epoch = steps_per_epoch(num_images, spec.optimizer.global_batch_size)
    schedule = spec.schedule
    num_steps = schedule.steps or per_epoch * (schedule.epochs or 0)
    warmup = schedule.warmup_steps or round(per_epoch * (schedule.warmup_epochs or 0.0))
    return Plan(
        num_steps=num_steps,
        steps_per_epoch=per_epoch,
        warmup_steps=warmup,
        checkpoint_every=max(1.0, spec.checkpoints.every_epochs * per_epoch),
        evaluate_every=spec.evaluation.every_epochs * per_epoch,
    )


def learning_rate_factor(plan: Plan, step: int) -> float:
    """Share of the peak learning rate at `step` (0 is the first): linear warm-up, then half a cosine to 0."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    done = (step - plan.warmup_steps) / max(1, plan.num_steps - plan.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def due(step: int, every: float) -> bool:
    """Whether a multiple of `every` lies in (step - 1, step]; `every` may be fractional."""
    return math.floor(step / every) > math.floor((step - 1) / every)
