"""Memory per rank and duration, from a specification."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.presets import PRESETS
from service.sizing import backbone_size, backbone_sizes, memory_per_rank, num_steps, training_seconds
from service.spec import RunSpec, merge, parse_spec
from trainer.backbone_sizes import line
from trainer.classifier import ShardedClassifier, build_classifier
from trainer.classifier.shard import Shard
from trainer.encoder import build_encoder
from trainer.schedule import make_plan


def spec(**sections: Any) -> RunSpec:
    base = {"data": {"path": "/images"}, "backbone": {"name": "resnet18"}, "schedule": {"epochs": 3}}
    return parse_spec(merge(base, sections))


@given(num_images=st.integers(2, 5000), num_ranks=st.integers(1, 64), embedding_size=st.integers(4, 300))
def test_rows_are_those_of_the_largest_shard(num_images: int, num_ranks: int, embedding_size: int) -> None:
    """Exactly, in fp32."""
    largest = max(len(Shard(num_images, rank, num_ranks)) for rank in range(num_ranks))
    estimate = memory_per_rank(spec(classifier={"embedding_size": embedding_size}), num_images, num_ranks)
    assert estimate.rows == estimate.rows_momentum == torch.empty(largest, embedding_size, device="meta").nbytes


@pytest.mark.parametrize("embedding_size", [16, 128])
def test_rows_and_momentum_are_the_classifiers_own(embedding_size: int) -> None:
    """The tensors that the trainer makes, byte for byte."""
    wanted = spec(classifier={"embedding_size": embedding_size, "hardest_k": 5}, optimizer={"global_batch_size": 64})
    classifier = build_classifier(wanted, 1001, torch.device("cpu"))
    assert isinstance(classifier, ShardedClassifier)
    estimate = memory_per_rank(wanted, 1001, 1)
    assert (estimate.rows, estimate.rows_momentum) == (classifier.rows_nD.nbytes, classifier.momentum_nD.nbytes)


@pytest.mark.parametrize("projector", [{}, {"hidden_size": 64}, {"batch_norm": False}])
def test_the_encoder_at_stage_0_is_three_times_its_parameters(projector: dict[str, Any]) -> None:
    """Parameters, gradients, momentum: of the encoder that the trainer builds, projector included."""
    wanted = spec(projector=projector, data={"image_size": 64})
    parameters = sum(parameter.nbytes for parameter in build_encoder(wanted).parameters())
    assert memory_per_rank(wanted, 1000, 1).encoder == 3 * parameters


def test_more_ranks_and_higher_stages_take_less_memory_each() -> None:
    """What is divided gets smaller; rows most of all."""
    wanted = {stage: spec(zero_stage=stage, optimizer={"global_batch_size": 1024}) for stage in (1, 2, 3)}
    for stage in (1, 2, 3):
        few, many = (memory_per_rank(wanted[stage], 1_000_000, ranks) for ranks in (8, 64))
        assert few.rows == 8 * many.rows
        assert all(getattr(few, part) > getattr(many, part) for part in ("encoder", "activations", "total"))
    at_8 = [memory_per_rank(wanted[stage], 1_000_000, 8).encoder for stage in (1, 2, 3)]
    assert at_8 == sorted(at_8, key=lambda size: -(size or 0))


def test_the_parts_add_up() -> None:
    """Rows, momentum, the classifier's work, the encoder, the activations."""
    parts = memory_per_rank(spec(), 50_000, 2).model_dump()
    assert parts.pop("total") == sum(parts.values())


@pytest.mark.parametrize("backbone", [{"name": "resnet18", "args": {"layers": [3, 1, 1, 1]}}, {"name": "resnet18", "args": {"width": 2}}])
def test_what_was_not_measured_is_not_guessed(backbone: dict[str, Any]) -> None:
    """An architecture with other arguments is another one: its rows are known, its encoder is not."""
    estimate = memory_per_rank(spec(backbone=backbone), 1000, 1)
    assert (estimate.encoder, estimate.activations, estimate.total) == (None, None, None)
    assert estimate.rows == 1000 * 128 * 4


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_known_whole(preset: str) -> None:
    """A person's first plan says what it takes."""
    assert memory_per_rank(parse_spec({"preset": preset, "data": {"path": "/images"}}), 100_000, 2).total is not None


def test_an_argument_that_changes_no_shape_leaves_the_estimate() -> None:
    """The size of a transformer's images stands in its arguments."""
    with_args = {"name": "vit_small_patch16_224", "args": {"img_size": 96, "drop_path_rate": 0.1}}
    assert backbone_size(spec(backbone=with_args)) == backbone_size(spec(backbone={"name": "vit_small_patch16_224"})) is not None


def test_small_images_with_the_small_stem_take_as_much_as_twice_the_size_without() -> None:
    """The stem of stride 1 keeps the resolution that the other has at twice the size."""
    small, standard = (spec(data={"image_size": 32}, backbone={"stem": stem}) for stem in ("auto", "standard"))
    activations = [memory_per_rank(wanted, 1000, 1).activations or 0 for wanted in (small, standard)]
    assert activations[0] == pytest.approx(4 * activations[1], rel=1e-6)


@pytest.mark.parametrize(("name", "args"), [("resnet18", {}), ("convnext_atto", {}), ("resnet18", PRESETS["demo"]["backbone"]["args"])])
def test_a_line_of_the_file_is_what_the_script_measures(name: str, args: dict[str, Any]) -> None:
    """Measured anew, on the meta device."""
    lines = (files("service") / "backbone_sizes.txt").read_text().splitlines()
    assert line(name, args) in lines


def test_the_file_covers_the_backbones_that_the_trainer_takes() -> None:
    """Nearly all of them: the rest cannot be traced without numbers."""
    names = set((files("service") / "backbones.txt").read_text().split())
    measured = {name for name, args in backbone_sizes() if args == "{}"}
    assert measured <= names
    assert len(measured) > 0.95 * len(names)


@given(num_images=st.integers(16, 10_000), batch=st.sampled_from([4, 8, 16]), epochs=st.integers(1, 50))
def test_the_length_is_the_trainers(num_images: int, batch: int, epochs: int) -> None:
    """In epochs as in steps."""
    for schedule in ({"epochs": epochs}, {"steps": epochs, "epochs": None}):
        wanted = spec(schedule=schedule, optimizer={"global_batch_size": batch})
        assert num_steps(wanted, num_images) == make_plan(wanted, num_images).num_steps


def test_twice_the_ranks_take_half_the_time() -> None:
    """Steps x global batch / images per second."""
    wanted = spec(optimizer={"global_batch_size": 64})
    assert training_seconds(wanted, 640, 1, 100.0) == pytest.approx(3 * 640 / 100)
    assert training_seconds(wanted, 640, 2, 100.0) == pytest.approx(3 * 640 / 200)
