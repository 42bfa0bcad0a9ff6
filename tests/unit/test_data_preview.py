"""The contact sheet of views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.cli import app
from service.spec import RunSpec
from tests.images import indexed, noise, write_image
from trainer.data.augment import augment, view_rng
from trainer.data.images import Images
from trainer.data.preview import _FRAME, _GAP, _LINE_HEIGHT, _NUM_LINES, draw_preview, write_preview
from trainer.errors import BadData

SIZE = 160
ROW, COLUMN = SIZE + _NUM_LINES * _LINE_HEIGHT + _GAP, SIZE + _GAP


def spec_of(root: Path, data: dict[str, Any] | None = None, **sections: Any) -> RunSpec:
    return RunSpec.model_validate(
        {"data": {"path": str(root), "image_size": SIZE} | (data or {}), "schedule": {"steps": 1}, "seed": 3} | sections
    )


def pile(root: Path, number: int = 5) -> Images:
    for i in range(number):
        write_image(root / f"{i}.png", noise(i, 60, 90))
    return indexed(root)


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = _GAP + row * ROW, _GAP + column * COLUMN
    return sheet[top : top + SIZE, left : left + SIZE]


def test_the_views_are_those_that_the_run_will_make(tmp_path: Path) -> None:
    """Oracle: the augmentation itself, with the run's seed; two views per image are an epoch's; images are evenly spaced."""
    images = pile(tmp_path)
    spec = spec_of(tmp_path, augmentation={"views_per_image": 2, "solarize": 0.5})
    sheet, unreadable = draw_preview(images, spec, num_images=2, num_views=5)
    assert sheet.shape == (_GAP + 2 * ROW, _GAP + 6 * COLUMN, 3)
    assert unreadable == []
    for row, instance in enumerate((0, 2)):
        for column, (epoch, view) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]):
            view_of_run = augment(noise(instance, 60, 90), spec.augmentation, SIZE, view_rng(3, epoch, instance, view))
            assert np.array_equal(tile(sheet, row, column + 1), view_of_run)


def test_the_original_is_shown_whole(tmp_path: Path) -> None:
    """A wide image of one colour fills the frame's width, and two thirds of its height, in the middle."""
    for i in range(2):
        write_image(tmp_path / f"{i}.png", np.full((60, 90, 3), (200, 100, 50), np.uint8))
    original = tile(draw_preview(indexed(tmp_path), spec_of(tmp_path), 1, 1)[0], 0, 0)
    is_image = (original == (200, 100, 50)).all(2)
    assert is_image.sum(0).tolist() == [107] * SIZE
    assert is_image[26:133].all()
    assert (original[~is_image] == _FRAME).all()


def test_small_views_are_enlarged_and_large_ones_reduced_to_be_seen(tmp_path: Path) -> None:
    """32 pixels are shown as 160, each a square of 5; 320 as 256; the small ones of a multi-crop stand after the others."""
    images = pile(tmp_path)
    spec = spec_of(tmp_path, {"image_size": 32}, augmentation={"small_views": 1, "small_size": 16, "small_crop_scale": (0.1, 0.3)})
    sheet, _ = draw_preview(images, spec, 1, 2)
    view = augment(noise(0, 60, 90), spec.augmentation, 32, view_rng(3, 0, 0, 0))
    assert np.array_equal(tile(sheet, 0, 1), view.repeat(5, 0).repeat(5, 1))
    scaled = spec.augmentation.model_copy(update={"crop_scale": (0.1, 0.3)})
    small = augment(noise(0, 60, 90), scaled, 16, view_rng(3, 0, 0, 1))
    assert np.array_equal(tile(sheet, 0, 2), small.repeat(10, 0).repeat(10, 1))
    assert draw_preview(images, spec_of(tmp_path, {"image_size": 320}), 1, 1)[0].shape[1] == _GAP + 2 * (256 + _GAP)


def test_an_image_that_cannot_be_read_leaves_its_row_empty_and_is_named(tmp_path: Path) -> None:
    """The others are shown."""
    images = pile(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"no image")
    spec = spec_of(tmp_path)
    sheet, unreadable = draw_preview(images, spec, 3, 2)
    assert len(unreadable) == 1
    assert "'1.png'" in unreadable[0]
    assert (tile(sheet, 1, 0) == _FRAME).all()
    assert np.array_equal(tile(sheet, 2, 2), augment(noise(2, 60, 90), spec.augmentation, SIZE, view_rng(3, 1, 2, 0)))


@pytest.mark.parametrize("channels", [1, 4])
def test_of_other_than_three_channels_the_first_is_shown_as_grey(tmp_path: Path, channels: int) -> None:
    """Files with as many channels as the specification says."""
    stored = np.dstack([noise(0), noise(1)])[..., :channels]
    for i in range(2):
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), stored)
    spec = spec_of(tmp_path, {"channels": channels})
    shown = cv2.cvtColor(stored, cv2.COLOR_BGRA2RGBA) if channels == 4 else stored  # OpenCV wrote blue first
    view = augment(shown, spec.augmentation, SIZE, view_rng(3, 0, 0, 0))
    sheet, unreadable = draw_preview(indexed(tmp_path), spec, 1, 1)
    assert unreadable == []
    assert np.array_equal(tile(sheet, 0, 1), view[..., :1].repeat(3, axis=2))


def test_below_each_view_is_what_was_drawn(tmp_path: Path) -> None:
    """With jitter off for one and on for all, the captions differ; a name longer than its tile does not reach the next."""
    write_image(tmp_path / f"{'long-name' * 10}.png", noise(0))
    write_image(tmp_path / "b.png", noise(1))
    images = indexed(tmp_path)
    captions = [
        draw_preview(images, spec_of(tmp_path, augmentation={"jitter": jitter, "blur": 0.0}), 2, 1)[0][-_NUM_LINES * _LINE_HEIGHT - _GAP :]
        for jitter in (0.0, 1.0)
    ]
    views_caption = slice(_GAP + COLUMN, None)
    assert not np.array_equal(captions[0][:, views_caption], captions[1][:, views_caption])
    assert np.array_equal(captions[0][:, : _GAP + COLUMN], captions[1][:, : _GAP + COLUMN])
    between = captions[0][:, _GAP + SIZE : _GAP + COLUMN]
    assert (between == 255).all()


def test_a_sheet_that_cannot_be_written_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """Of no known format, and in no folder."""
    images = pile(tmp_path / "images")
    for name, remedy in (("views.text", "end it in .png"), ("missing/views.png", "give another file")):
        with pytest.raises(BadData, match=remedy):
            write_preview(images, spec_of(tmp_path), tmp_path / name, 1, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["images"]


def test_the_command_writes_the_sheet_and_says_what_it_could_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a specification in a file, with its relative path; nothing is left beside the images."""
    pile(tmp_path / "images", 3)
    (tmp_path / "images" / "0.png").write_bytes(b"no image")
    (tmp_path / "spec.yaml").write_text("{data: {path: images, image_size: 160}, schedule: {steps: 1}}")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["preview", "spec.yaml", "-o", "views.png", "--images", "2", "--views", "3"])
    assert result.exit_code == 0, result.output
    assert "'0.png'" in result.output
    assert "2 of 3 images, 3 views each: views.png" in result.output
    assert cv2.imread("views.png").shape == (_GAP + 2 * ROW, _GAP + 4 * COLUMN, 3)
    assert sorted({*tmp_path.rglob("*")} - {*before}) == [tmp_path / "views.png"]
