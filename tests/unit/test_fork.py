"""What a run that starts from another's checkpoint may change."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidSpec
from service.fork import check_fork
from service.spec import RunSpec, merge

BASE: dict[str, Any] = {
    "data": {"path": "/images", "limit": 1000},
    "backbone": {"name": "resnet18"},
    "optimizer": {"global_batch_size": 100},
    "schedule": {"epochs": 10},
}


def spec(**changes: Any) -> RunSpec:
    return RunSpec.model_validate(merge(BASE, changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": {"epochs": 20, "warmup_epochs": 1}},
        {"schedule": {"epochs": 6}},
        {"schedule": {"steps": 51}},
        {"optimizer": {"learning_rate": 0.1, "classifier_learning_rate": 2.0, "momentum": 0.8, "weight_decay": 0.0}},
        {"classifier": {"temperature": 0.2, "smoothing": 0.0, "hardest_k": 7, "hardest_by": "class_similarity", "chunk_size": 64}},
        {"augmentation": {"blur": 0.0, "views_per_image": 2}, "data": {"image_size": 128, "num_workers": 4}},
        {"evaluation": {"labelled": "/labelled"}, "checkpoints": {"keep_last": 9}},
        {"resources": {"ranks_per_node": 4}, "precision": "bf16", "zero_stage": 1, "name": "other", "priority": 3},
    ],
)
def test_what_does_not_touch_the_carried_state_may_change(changes: dict[str, Any]) -> None:
    """Schedule, rates, temperature, smoothing, augmentation, evaluation, resources."""
    check_fork(spec(), spec(**changes), 50)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data": {"path": "/others"}}, "data.path"),
        ({"data": {"limit": 999}}, "data.limit"),
        ({"backbone": {"name": "resnet50"}}, "backbone.name"),
        ({"backbone": {"batch_norm": "synchronised"}}, "backbone.batch_norm"),
        ({"projector": {"hidden_size": 64}}, "projector.hidden_size"),
        ({"classifier": {"embedding_size": 64}}, "classifier.embedding_size"),
        ({"classifier": {"parallelism": "zero3"}, "zero_stage": 3}, "classifier.parallelism"),
        ({"optimizer": {"global_batch_size": 50}}, "optimizer.global_batch_size"),
        ({"seed": 1}, "seed"),
        ({"data": {"image_size": 32}}, "data.image_size"),
        ({"schedule": {"epochs": 5}}, "schedule.epochs"),
        ({"schedule": {"steps": 50}}, "schedule.steps"),
    ],
)
def test_what_the_carried_state_depends_on_is_refused_by_name_with_the_remedy(changes: dict[str, Any], field: str) -> None:
    """One error each, with field and value; the message says what it is here and there, and what to do."""
    child = spec(**changes)
    with pytest.raises(InvalidSpec) as caught:
        check_fork(spec(), child, 50)
    (error,) = caught.value.errors
    assert error.field == field
    section, _, name = field.rpartition(".")
    assert error.value == getattr(getattr(child, section) if section else child, name)
    assert error.message.startswith(f"{field} is ")
    assert any(remedy in error.message for remedy in ("start a new run", "use "))


def test_every_mistake_is_named_at_once() -> None:
    """A person corrects a document once."""
    with pytest.raises(InvalidSpec) as caught:
        check_fork(spec(), spec(seed=1, data={"path": "/others"}, schedule={"epochs": 2}), 50)
    assert [error.field for error in caught.value.errors] == ["data.path", "seed", "schedule.epochs"]


def test_a_length_that_depends_on_the_number_of_images_is_left_to_the_job() -> None:
    """Without data.limit nobody knows how long five epochs are."""
    parent = RunSpec.model_validate(merge(BASE, {"data": {"limit": None}}))
    check_fork(parent, RunSpec.model_validate(merge(BASE, {"data": {"limit": None}, "schedule": {"epochs": 1}})), 50)
