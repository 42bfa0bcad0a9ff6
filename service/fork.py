"""What a run that starts from another's checkpoint may change. A pure function: the API asks at the request, the job once more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from service.errors import FieldError, InvalidSpec
from service.section import Section
from service.sections import describe
from service.spec import RunSpec, merge, parse_spec

SMALL_IMAGE = 64
"""data.image_size under which stem `auto` may be the small one (trainer/encoder.py)."""

SAME: dict[str, str] = {
    "data.path": "every image is a class: other images have other rows",
    "data.limit": "every image is a class: other images have other rows",
    "backbone": "its weights are carried over",
    "projector": "its weights are carried over",
    "classifier.embedding_size": "the rows are carried over",
    "classifier.parallelism": "the rows are stored in its form",
    "optimizer.global_batch_size": "the place in the data is counted in steps of this size",
    "seed": "the order of the images follows from it",
}
"""Fields that a fork keeps, or sections all of whose fields it keeps, with the reason."""


def forked_spec(parent: RunSpec, changes: Mapping[str, Any], step: int) -> RunSpec:
    """The specification of a run that starts from `parent`'s checkpoint of `step`: `changes` laid over the parent's. Raises InvalidSpec."""
    child = parse_spec(merge(parent.model_dump(mode="json"), changes))
    check_fork(parent, child, step)
    return child


def check_fork(parent: RunSpec, child: RunSpec, step: int) -> None:
    """Raises InvalidSpec with everything that keeps `child` from starting at `parent`'s checkpoint of `step`.

    Schedule, learning rates, temperature, smoothing, augmentation, evaluation and resources may differ. The schedules are
    functions of the step: the child's learning rate is that of its own schedule at `step`.
    """
    if errors := [*_changed(parent, child), *_stem(parent, child), *_length(child, step)]:
        raise InvalidSpec(errors)


def _changed(parent: RunSpec, child: RunSpec) -> Iterator[FieldError]:
    for place, why in SAME.items():
        theirs, ours = _at(parent, place), _at(child, place)
        pairs = [(place, theirs, ours)]
        if isinstance(theirs, Section):
            pairs = [(f"{place}.{name}", getattr(theirs, name), getattr(ours, name)) for name in type(theirs).model_fields]
        for field, old, new in pairs:
            if old != new:
                said = f"{field} is {describe(new)} and {describe(old)} in the run that it starts from"
                yield FieldError(field, new, f"{said}; {why}: leave the field as it was, or start a new run")


def _stem(parent: RunSpec, child: RunSpec) -> Iterator[FieldError]:
    old, new = parent.data.image_size, child.data.image_size
    if child.backbone.stem == "auto" and (old < SMALL_IMAGE) != (new < SMALL_IMAGE):
        said = f"data.image_size is {new} and {old} in the run that it starts from"
        size = f"less than {SMALL_IMAGE}" if old < SMALL_IMAGE else f"at least {SMALL_IMAGE}"
        yield FieldError("data.image_size", new, f"{said}; with backbone.stem auto the network would be another: use {size} pixels")


def _length(child: RunSpec, step: int) -> Iterator[FieldError]:
    schedule, limit = child.schedule, child.data.limit
    done = f"the checkpoint stands at step {step}"
    if schedule.steps is not None and schedule.steps <= step:
        yield FieldError("schedule.steps", schedule.steps, f"schedule.steps is {schedule.steps}; {done}: use at least {step + 1}")
    if schedule.epochs is not None and limit is not None:
        per_epoch = -(-limit // child.optimizer.global_batch_size)  # at most: the folder may hold fewer images
        if (most := schedule.epochs * per_epoch) <= step:
            said = f"schedule.epochs is {schedule.epochs}, at most {most} steps"
            yield FieldError("schedule.epochs", schedule.epochs, f"{said}; {done}: use at least {step // per_epoch + 1}")


def _at(spec: RunSpec, place: str) -> Any:
    value: Any = spec
    for name in place.split("."):
        value = getattr(value, name)
    return value
