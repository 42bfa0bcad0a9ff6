"""The whole job as the worker launches it: two ranks under PyTorch's launcher, stopped, killed, resumed, and misused."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from service.events import job_event
from tests.distributed.job import NUM_STEPS, Job, differing, failure, spec_of, weights
from tests.images import noise_folder
from trainer.checkpoint_files import list_checkpoints

pytestmark = pytest.mark.distributed


def test_a_stopped_and_a_killed_run_resume_to_the_weights_of_one_that_never_stopped(tmp_path: Path) -> None:
    """SIGTERM: a checkpoint at once, then exit. SIGKILL: back to the last checkpoint. In the end, the same bits, though the one that never
    stopped had no loader process, and the other had."""
    changes: dict[str, Any] = {
        "zero_stage": 2,
        "classifier": {"hardest_by": "class_similarity"},
        "augmentation": {"small_views": 1, "small_size": 8},
    }
    spec = spec_of(noise_folder(tmp_path / "images", 60), checkpoints={"every_epochs": 2}, data={"num_workers": 1}, **changes)
    whole = Job(spec.model_copy(update={"data": spec.data.model_copy(update={"num_workers": 0})}), tmp_path / "whole")
    assert whole.wait() == 0, whole.logs()
    for event in whole.events():
        job_event.validate_python(event)
    assert [event["seq"] for event in whole.events()] == list(range(1, len(whole.events()) + 1))

    first = Job(spec, tmp_path / "broken", 1)
    first.signal_at_step(4, signal.SIGTERM)
    assert first.wait() != 0
    stopped_at = [event["step"] for event in first.events() if event["kind"] == "checkpointed"][-1]
    assert stopped_at < NUM_STEPS
    second = Job(spec, tmp_path / "broken", 2)
    second.signal_at_step(stopped_at + 5, signal.SIGKILL)
    second.wait()
    third = Job(spec, tmp_path / "broken", 3)
    assert third.wait() == 0, third.logs()
    (started,) = [event for event in third.events() if event["kind"] == "started"]
    assert 0 < started["start_step"] < NUM_STEPS

    assert differing(weights(tmp_path / "broken"), weights(tmp_path / "whole")) == []


def test_a_loss_that_becomes_infinite_ends_the_run_with_the_steps_and_a_hint(tmp_path: Path) -> None:
    """A learning rate of 1000 destroys the weights within a few steps."""
    spec = spec_of(
        noise_folder(tmp_path / "images", 60),
        optimizer={"learning_rate": 1000.0, "weight_decay": 1.0, "classifier_learning_rate": 10_000.0, "classifier_weight_decay": 1.0},
        schedule={"steps": 200, "warmup_steps": 0},
        log_every_steps=10,
    )
    event = failure(Job(spec, tmp_path / "run"))
    assert event["code"] == "non_finite_loss"
    assert "between steps" in event["message"]
    assert "lower optimizer.learning_rate" in event["message"]


def test_a_missing_folder_is_named_before_anything_else_happens(tmp_path: Path) -> None:
    """Rank 0 looks; all ranks end."""
    event = failure(Job(spec_of(tmp_path / "nowhere"), tmp_path / "run"))
    assert event["code"] == "bad_data"
    assert str(tmp_path / "nowhere") in event["message"]


def test_a_fork_whose_images_are_not_those_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    """One has another name by now. The run itself keeps the images that it began with (test_faults.py)."""
    images = noise_folder(tmp_path / "images", 60)
    spec = spec_of(images)
    first = Job(spec, tmp_path / "run", 1)
    first.signal_at_step(3, signal.SIGTERM)
    first.wait()
    (images / "005.png").rename(images / "zzz.png")
    event = failure(Job(spec, tmp_path / "fork", 1, start_from=list_checkpoints(first.run_dir.checkpoints)[0].path))
    assert event["code"] == "bad_data"
    assert "not those of checkpoint" in event["message"]
