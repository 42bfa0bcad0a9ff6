"""What the demonstration makes of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.demo_data import MAX_IMAGES, DemoData, demo_spec, inspect, write_digits
from service.errors import MillionwayError
from service.spec import check_fits_dataset, parse_spec
from tests.images import noise_folder


@given(num_images=st.integers(4, 100_000), slots=st.integers(1, 64))
def test_the_specification_fits_any_number_of_images_on_any_machine(num_images: int, slots: int) -> None:
    """No mistake that a submission or the trainer would refuse, and no more ranks than the machine has."""
    spec = demo_spec(DemoData(Path("/images"), None, None, num_images), slots)
    check_fits_dataset(spec, min(num_images, MAX_IMAGES))
    assert spec.resources.world_size <= slots
    assert spec.data.limit == (MAX_IMAGES if num_images > MAX_IMAGES else None)


def test_the_demonstrations_run_has_a_name_that_no_preset_gives() -> None:
    """It cancels unfinished runs of its name: a run of the preset must not be among them."""
    ours = demo_spec(DemoData(Path("/images"), None, None, 1000), 2)
    assert ours.name != parse_spec({"preset": "demo", "data": {"path": "/images"}}).name


def test_the_digits_are_split_by_class_and_written_once(tmp_path: Path) -> None:
    """1,797 images; of each class four fifths are for training; no image is in both parts."""
    root = write_digits(tmp_path / "digits")
    parts = {part: sorted(path.name for path in (root / part).rglob("*.png")) for part in ("train", "test")}
    assert len(parts["train"]) + len(parts["test"]) == 1797
    assert not set(parts["train"]) & set(parts["test"])
    for digit in range(10):
        train, test = (len(list((root / part / str(digit)).iterdir())) for part in ("train", "test"))
        assert test == (train + test) // 5
    written = (root / "train").stat().st_mtime_ns
    assert write_digits(root) == root
    assert (root / "train").stat().st_mtime_ns == written


def test_half_written_digits_are_written_anew(tmp_path: Path) -> None:
    """A demonstration that was killed leaves a partial folder; the next does not take it for the whole."""
    (tmp_path / "digits.partial" / "train" / "0").mkdir(parents=True)
    assert len(list(write_digits(tmp_path / "digits").rglob("*.png"))) == 1797


def test_train_and_test_folders_of_classes_are_bank_and_queries(tmp_path: Path) -> None:
    """The layout of most data sets."""
    for part in ("train", "test"):
        for label in ("a", "b"):
            noise_folder(tmp_path / part / label, 4)
    assert inspect(tmp_path) == DemoData(tmp_path / "train", tmp_path / "train", tmp_path / "test", 8)


def test_folders_of_classes_are_their_own_bank(tmp_path: Path) -> None:
    """The trainer takes every fifth image as a query."""
    for label in ("a", "b", "c"):
        noise_folder(tmp_path / label, 3)
    assert inspect(tmp_path) == DemoData(tmp_path, tmp_path, None, 9)


@pytest.mark.parametrize("folders", [[""], ["one"], ["", "a", "b"]])
def test_images_without_classes_are_trained_on_and_not_evaluated(tmp_path: Path, folders: list[str]) -> None:
    """Flat, in a single folder, or flat beside folders."""
    for folder in folders:
        noise_folder(tmp_path / folder, 6)
    data = inspect(tmp_path)
    assert (data.images, data.labelled, data.queries) == (tmp_path, None, None)
    assert data.num_images == 6 * len(folders)


def test_a_wrong_data_path_is_named_with_the_remedy(tmp_path: Path) -> None:
    """Missing, a file, or without images."""
    (tmp_path / "notes.txt").write_text("no image")
    for path in (tmp_path / "missing", tmp_path / "notes.txt", tmp_path):
        with pytest.raises(MillionwayError, match=str(path)):
            inspect(path)


def test_too_few_images_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """A batch of fewer has no BatchNorm statistics."""
    with pytest.raises(MillionwayError, match="3 images are too few"):
        inspect(noise_folder(tmp_path, 3))
