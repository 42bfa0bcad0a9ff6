"""How long a run is, and its learning rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from service.spec import RunSpec, merge
from trainer.schedule import due, learning_rate_factor, make_plan


def plan_of(num_images: int = 1000, **changes: Any) -> Any:
    base = {"data": {"path": "/x"}, "schedule": {"epochs": 10, "warmup_epochs": 2}, "optimizer": {"global_batch_size": 100}}
    return make_plan(RunSpec.model_validate(merge(base, changes)), num_images)


def test_an_epoch_sees_every_image_once() -> None:
    """1,001 images in batches of at most 100 are eleven steps."""
    assert plan_of(1001).steps_per_epoch == 11
    assert plan_of(1000).num_steps == 100


def test_the_schedule_is_torchs_linear_warm_up_and_cosine() -> None:
    """Against torch.optim.lr_scheduler's SequentialLR of LinearLR and CosineAnnealingLR."""
    plan = plan_of()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = torch.optim.lr_scheduler
    warmup = schedulers.LinearLR(optimizer, start_factor=1 / plan.warmup_steps, total_iters=plan.warmup_steps - 1)
    cosine = schedulers.CosineAnnealingLR(optimizer, T_max=plan.num_steps - plan.warmup_steps)
    expected = []
    for step in range(plan.num_steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        (warmup if step < plan.warmup_steps - 1 else cosine if step >= plan.warmup_steps else _Still()).step()
    assert [learning_rate_factor(plan, step) for step in range(plan.num_steps)] == pytest.approx(expected, abs=1e-9)


class _Still:
    def step(self) -> None:
        """Step warmup_steps - 1 and the cosine's first have the same rate, the peak."""


def test_the_warm_up_ends_at_the_peak_and_the_run_near_zero() -> None:
    plan = plan_of()
    assert learning_rate_factor(plan, plan.warmup_steps - 1) == 1
    assert 0 < learning_rate_factor(plan, plan.num_steps - 1) < 0.001


def test_a_run_in_steps_has_its_warm_up_in_steps() -> None:
    plan = plan_of(schedule={"steps": 37, "warmup_steps": 5})
    assert (plan.num_steps, plan.warmup_steps, plan.epoch(37)) == (37, 5, 3.7)


def test_fractional_intervals_are_due_as_often_as_they_fit() -> None:
    """Every 2.5 steps: at 3, 5, 8, 10."""
    assert [step for step in range(1, 11) if due(step, 2.5)] == [3, 5, 8, 10]
