"""Finding and reading images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.images import noise, noise_folder, write_image
from trainer.data.images import index_images, read_image
from trainer.errors import BadData


def test_images_are_found_in_all_folders_and_sorted_by_relative_path(tmp_path: Path) -> None:
    """Extensions count in either case; hidden files and folders and other files do not."""
    for name in ("b/2.JPG", "a/x/1.png", "c.webp", "a.tif", ".hidden/3.png", "b/.4.png"):
        write_image(tmp_path / name, noise(0))
    (tmp_path / "b" / "notes.txt").write_text("no image")
    assert index_images(tmp_path).paths == ["a.tif", "a/x/1.png", "b/2.JPG", "c.webp"]


def test_a_cycle_of_links_ends_and_no_image_is_found_twice(tmp_path: Path) -> None:
    """A link to a folder is followed once."""
    noise_folder(tmp_path / "images" / "a", 3)
    (tmp_path / "images" / "a" / "up").symlink_to(tmp_path / "images")
    (tmp_path / "elsewhere").mkdir()
    noise_folder(tmp_path / "elsewhere", 2)
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    assert index_images(tmp_path / "images").paths == ["a/000.png", "a/001.png", "a/002.png", "linked/000.png", "linked/001.png"]


def test_a_limit_takes_evenly_spaced_images(tmp_path: Path) -> None:
    """Not the first ones: those would all be of the first sub-folder."""
    noise_folder(tmp_path, 10)
    assert index_images(tmp_path, 4).paths == ["000.png", "002.png", "005.png", "007.png"]
    assert len(index_images(tmp_path, 10)) == len(index_images(tmp_path, 11)) == 10


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ([], "missing", "'{root}/missing/' (No such file or directory): give the absolute path of a folder that exists"),
        (["a.png"], "a.png", "(Not a directory): give the folder that holds the images"),
        ([], "", "holds no files: name a folder with at least 2 images (.jpg, "),
        (["a.txt", "b.npy"], "", "holds 2 files, none with an image extension"),
        (["a.txt", "b.png"], "", "holds 2 files, 1 with an image extension"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused_with_what_it_holds(tmp_path: Path, files: list[str], path: str, message: str) -> None:
    """The message names the folder, what was found there and the remedy."""
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(BadData) as refused:
        index_images(tmp_path / path)
    assert message.replace("{root}/missing/", f"{tmp_path}/missing") in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_pixels_are_red_green_blue_as_stored(tmp_path: Path) -> None:
    """Oracle: Pillow."""
    for name in ("a.png", "a.bmp", "a.tiff", "a.jpg"):
        write_image(tmp_path / name, cv2.GaussianBlur(noise(1, 20, 31), (0, 0), 3))
        read = read_image(tmp_path / name)
        assert read.dtype == np.uint8
        assert read.shape == (20, 31, 3)
        assert np.abs(read.astype(int) - np.asarray(Image.open(tmp_path / name).convert("RGB"))).max() <= 2


def test_grey_palette_alpha_and_16_bit_images_become_three_channels_of_8_bits(tmp_path: Path) -> None:
    """Grey is repeated, a palette looked up, alpha dropped, of 16 bits the upper 8 kept."""
    pixels = noise(2)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), pixels[..., :1].repeat(3, axis=2))
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "alpha.png"), pixels)
    deep = pixels.astype(np.uint16) << 8
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    assert np.array_equal(read_image(tmp_path / "deep.png"), pixels)


def test_a_photograph_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    """EXIF orientation 6: turn by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.full((10, 30, 3), 200, np.uint8))
    image.save(tmp_path / "sideways.jpg", exif=exif)
    assert read_image(tmp_path / "sideways.jpg").shape == (30, 10, 3)


def test_an_image_that_cannot_be_decoded_is_refused_by_name(tmp_path: Path) -> None:
    """Empty, text, missing and truncated at the header: the message names the file."""
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("this is no image")
    write_image(tmp_path / "whole.png", noise(3))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:30])
    for name in ("empty.png", "text.jpg", "missing.png", "cut.png"):
        with pytest.raises(BadData, match=name):
            read_image(tmp_path / name)
