"""The one definition of a run: request body, stored record, the trainer's input and a checkpoint's metadata.

    RunSpec.model_validate(document)   a person's document: unknown keys are refused
    parse_spec(document)               the same, with errors that name field, value and remedy (InvalidSpec)
    stored_spec(text)                  a document that we stored: keys of a later version are ignored

A document may name a `preset` (service/presets.py); what it states itself goes over the preset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from service.data_sections import Augmentation, Data, ViewKind
from service.errors import FieldError, InvalidSpec
from service.presets import PRESETS
from service.section import Section
from service.sections import (
    Backbone,
    Checkpoints,
    Classifier,
    Evaluation,
    Optimizer,
    Projector,
    Resources,
    Retries,
    Schedule,
)
from service.spec_errors import field_errors

LabelKey = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
LabelValue = Annotated[str, Field(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]


class RunSpec(Section):
    """What to train, on what, how and for how long."""

    name: str = Field(default="run", min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    """A name for people."""
    preset: Literal["imagenet-1m", "cifar10", "demo"] | None = None
    """Where the values that the document does not state come from, before the defaults."""
    data: Data
    """The images: name at least the absolute path of their folder, e.g. data: {path: /data/images}."""
    backbone: Backbone = Backbone()
    projector: Projector = Projector()
    classifier: Classifier = Classifier()
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule
    """How long to train: give epochs or steps, e.g. schedule: {epochs: 100}, or a preset that states them."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the encoder's forward and backward pass. V100: fp16; Ampere and later: bf16; CPU: fp32."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage of the encoder: what is partitioned over the ranks (1 optimiser state, 2 gradients, 3 parameters)."""
    resources: Resources = Resources()
    retries: Retries = Retries()
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher runs first, and a lower one gives way with a checkpoint. Can be changed while the run is queued or runs."""
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=32)
    """For people and their programs, e.g. {"project": "seeds"}."""
    checkpoints: Checkpoints = Checkpoints()
    evaluation: Evaluation = Evaluation()
    log_every_steps: int = Field(default=10, ge=1, le=100_000)
    """Steps between progress reports, and between the checks for non-finite losses and requests to stop."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Everything random follows from it."""

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, document: Any) -> Any:
        if not isinstance(document, Mapping) or document.get("preset") is None:
            return document
        preset = PRESETS.get(document["preset"]) if isinstance(document["preset"], str) else None
        return document if preset is None else merge(preset, document)

    @model_validator(mode="after")
    def _fits_together(self) -> RunSpec:
        world_size, batch = self.resources.world_size, self.optimizer.global_batch_size
        if batch % world_size:
            below, above = batch // world_size * world_size, -(-batch // world_size) * world_size
            near = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"optimizer.global_batch_size is {batch}, not divisible by the {world_size} ranks "
                f"(resources.nodes x ranks_per_node): use {near}"
            )
        if batch < 4 * world_size:
            raise ValueError(
                f"optimizer.global_batch_size is {batch} on {world_size} ranks: BatchNorm needs at least 4 images on each: "
                f"use at least {4 * world_size}, or fewer ranks"
            )
        parts = self.optimizer.gradient_accumulation_steps
        if batch % (world_size * parts) or batch < 4 * world_size * parts:
            raise ValueError(
                f"optimizer.gradient_accumulation_steps is {parts} with {batch // world_size} images of a step on each of {world_size} "
                f"ranks: it must divide them into parts of at least 4: use 1, or another divisor of {batch // world_size}"
            )
        least = self.resources.min_ranks
        if least is not None and least > world_size:
            raise ValueError(f"resources.min_ranks is {least}, more than the {world_size} ranks of nodes x ranks_per_node: lower it")
        if self.augmentation.small_views and self.small_size >= self.data.image_size:
            raise ValueError(
                f"augmentation.small_size is {self.small_size} with data.image_size {self.data.image_size}: the small views are to be "
                f"smaller: use at most {self.data.image_size - 1}, or set small_views to 0"
            )
        limit = self.data.limit
        if limit is not None:
            check_fits_dataset(self, limit)
        if self.precision == "fp16" and self.zero_stage == 0:
            raise ValueError("zero_stage is 0 with precision fp16: DeepSpeed does not scale the loss at stage 0: set zero_stage to 1")
        if self.precision == "fp16" and self.classifier.parallelism == "zero3":
            raise ValueError(
                "classifier.parallelism is zero3 with precision fp16: the rows would be fp16 too: set parallelism to class, or "
                "precision to bf16"
            )
        for name, kept in {"rows_dtype": "fp32", "momentum_dtype": "fp32", "rows_on": "device"}.items():
            value = getattr(self.classifier, name)
            if self.classifier.parallelism == "zero3" and value != kept:
                raise ValueError(
                    f"classifier.{name} is {value} with parallelism zero3: DeepSpeed then keeps the rows, in fp32 on the device: set "
                    f"parallelism to class, or {name} to {kept}"
                )
        section = self.classifier
        if section.rows_on == "host" and section.hardest_by == "class_similarity" and section.smoothing > 0:
            raise ValueError(
                "classifier.rows_on is host with hardest_by class_similarity: the search for the nearest rows wants them on the device: "
                "set hardest_by to sample_score, or rows_on to device"
            )
        if self.precision == "fp16" and self.resources.device == "cpu":
            raise ValueError("precision is fp16 on resources.device cpu: CPUs have no fast fp16: use fp32 or bf16")
        if self.classifier.parallelism == "zero3" and self.zero_stage != 3:
            raise ValueError(
                f"classifier.parallelism is zero3 with zero_stage {self.zero_stage}: the rows are then partitioned by "
                "ZeRO-3: set zero_stage to 3, or parallelism to class"
            )
        return self

    @property
    def small_size(self) -> int:
        """Side of the smaller views, in pixels."""
        return self.augmentation.small_size or max(8, 16 * round(self.data.image_size * 3 / 7 / 16))

    @property
    def view_kinds(self) -> tuple[ViewKind, ...]:
        """The views of an image: those of data.image_size, then the smaller ones where there are some."""
        views = self.augmentation
        kinds = (
            ViewKind(views.views_per_image, self.data.image_size, views.crop_scale),
            ViewKind(views.small_views, self.small_size, views.small_crop_scale),
        )
        return tuple(kind for kind in kinds if kind.number)

    @property
    def num_views(self) -> int:
        """Of an image, of all sizes: as many samples it is to the classifier."""
        return sum(kind.number for kind in self.view_kinds)

    @property
    def device(self) -> Literal["auto", "cpu", "cuda"]:
        """On which nodes the run can be: with fp16, which `auto` does not find on a CPU, on those with GPUs."""
        return "cuda" if self.precision == "fp16" else self.resources.device


def check_fits_dataset(spec: RunSpec, num_images: int, num_classes: int | None = None) -> None:
    """Raise ValueError where the specification asks more of a dataset than its `num_images`, of `num_classes` (default: as many), give."""
    classes = num_images if num_classes is None else num_classes
    if spec.classifier.smoothing > 0 and spec.classifier.hardest_k >= classes:
        raise ValueError(
            f"classifier.hardest_k is {spec.classifier.hardest_k} with {classes} images: the hardest classes are other "
            f"images, so at most {classes - 1}"
        )
    if spec.optimizer.global_batch_size > num_images:
        raise ValueError(
            f"optimizer.global_batch_size is {spec.optimizer.global_batch_size} with {num_images} images: use at most "
            f"{num_images // spec.resources.world_size * spec.resources.world_size}"
        )


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, section by section.

    A length in one unit drops the base's length in the other, and another backbone the base's arguments.
    """
    merged = dict(base)
    for key, value in over.items():
        under = base.get(key)
        if not (isinstance(under, Mapping) and isinstance(value, Mapping)) or key == "args":
            merged[key] = value
            continue
        if key == "schedule" and value.get("steps") is not None:
            under = {k: v for k, v in under.items() if "epochs" not in k}
        if key == "schedule" and value.get("epochs") is not None:
            under = {k: v for k, v in under.items() if "steps" not in k}
        if key == "data" and value.get("channels", under.get("channels", 3)) != under.get("channels", 3):
            under = {k: v for k, v in under.items() if k not in ("mean", "std")}  # they are of other channels
        if key == "backbone" and value.get("name", under.get("name")) != under.get("name"):
            under = {k: v for k, v in under.items() if k != "args"}  # they are another architecture's
        merged[key] = merge(under, value)
    return merged


def parse_spec(document: object) -> RunSpec:
    """A person's document as a specification. Raises InvalidSpec, which names field, value and remedy of every mistake."""
    try:
        return RunSpec.model_validate(document)
    except ValidationError as error:
        raise InvalidSpec(field_errors(error.errors(), RunSpec)) from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: the earlier value would be lost without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def read_spec(text: str) -> RunSpec:
    """YAML or JSON text as a specification. Raises InvalidSpec."""
    try:
        document = _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}, column {where.column + 1}" if where else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise InvalidSpec([FieldError("", None, f"not YAML or JSON{line}: {problem}")]) from None
    except RecursionError:
        raise InvalidSpec([FieldError("", None, "the document is nested too deeply for a specification")]) from None
    except (ValueError, LookupError, AttributeError) as error:  # what PyYAML's constructors raise besides its own errors
        message = f"a value cannot be read as the number, date or tag that it looks like ({error}): put it in quotes to keep it as text"
        raise InvalidSpec([FieldError("", None, message)]) from None
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise InvalidSpec([FieldError("", None, f"a specification is a mapping of sections, this is a {kind}")])
    return parse_spec(document)


def stored_spec(text: str | bytes) -> RunSpec:
    """A specification that we wrote: what a later version added to it is ignored."""
    return RunSpec.model_validate(json.loads(text), extra="ignore")


def _as_stored(spec: object) -> object:
    return spec if isinstance(spec, RunSpec) else RunSpec.model_validate(spec, extra="ignore")


StoredSpec = Annotated[RunSpec, BeforeValidator(_as_stored)]
"""A specification within a message or a record of ours: read as `stored_spec` reads it."""
