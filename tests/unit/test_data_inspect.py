"""The report before a run, and the pass over all images that it comes from."""

from __future__ import annotations

import io
import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.images import noise, noise_folder, write_image
from trainer.data.headers import Header, read_header
from trainer.data.index import Index, write_index
from trainer.data.inspect import perceptual_hash, scan_images, thumbnail
from trainer.data.inspect_report import inspect_images, write_report
from trainer.data.reader import Reader
from trainer.data.row_pool import CRASHED, over_rows
from trainer.data.sources import list_source


def index_of(root: Path) -> Index:
    return write_index(list_source(str(root)), root.parent / f"{root.name}-index")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sideways() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def sample(mode: str) -> Image.Image:
    image = Image.fromarray(noise(0, 20, 30)).convert(mode)
    if mode == "RGBA":
        image.putalpha(77)
    return image


HEADERS = [
    (saved(sample("RGB"), "JPEG"), Header("jpeg", 3, 8, 0, 20, 30)),
    (saved(sample("L"), "JPEG", progressive=True), Header("jpeg", 1, 8, 0, 20, 30)),
    (saved(sample("CMYK"), "JPEG"), Header("jpeg", 4, 8, 0, 20, 30)),
    (saved(sample("RGB"), "JPEG", exif=sideways()), Header("jpeg", 3, 8, 6, 20, 30)),
    (saved(sample("RGBA"), "PNG"), Header("png", 4, 8)),
    (saved(sample("LA"), "PNG"), Header("png", 2, 8)),
    (saved(sample("P"), "PNG"), Header("png", 3, 8)),
    (saved(sample("I;16"), "PNG"), Header("png", 1, 16)),
    (saved(sample("RGB"), "PNG", exif=sideways()), Header("png", 3, 8, 6)),
    (saved(sample("RGB"), "WEBP"), Header("webp", 3, 8)),
    (saved(sample("RGBA"), "WEBP"), Header("webp", 4, 8)),
    (saved(sample("RGBA"), "WEBP", lossless=True), Header("webp", 4, 8)),
    (saved(sample("RGB"), "WEBP", exif=sideways()), Header("webp", 3, 8, 6)),
    (saved(sample("RGB"), "BMP"), Header("bmp", 3, 8)),
    (saved(sample("RGB"), "TIFF", exif=sideways()), Header("tiff", 3, 8, 6)),
    (saved(sample("L"), "TIFF"), Header("tiff", 1, 8)),
    (saved(sample("P"), "TIFF"), Header("tiff", 3, 8)),
    (saved(sample("RGB"), "GIF"), Header("gif", 3, 8)),
    (b"a text", Header("unknown")),
    (b"", Header("unknown")),
]


@pytest.mark.parametrize(("data", "header"), HEADERS)
def test_a_header_tells_format_channels_depth_and_orientation(data: bytes, header: Header) -> None:
    """Of files that Pillow wrote; the name plays no part."""
    assert read_header(data) == header


def test_a_damaged_header_is_survived() -> None:
    """Cut anywhere, or with bytes changed, it gives the format or nothing."""
    rng = np.random.default_rng(0)
    for data, header in HEADERS:
        for end in range(min(len(data), 300)):
            assert read_header(data[:end]).format in (header.format, "unknown", "avif or heif")
        for _ in range(50):
            changed = np.frombuffer(data[:400], np.uint8).copy()
            changed[rng.integers(0, len(changed), min(5, len(changed)))] = rng.integers(0, 256) if len(changed) else 0
            assert isinstance(read_header(changed.tobytes()), Header)


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_are_those_of_all_pixels(tmp_path: Path, channels: int) -> None:
    """Oracle: numpy over the decoded stack."""
    images = [noise(i) // (1 + i % 3) + 40 * (i % 2) for i in range(12)]
    for i, pixels in enumerate(images):
        write_image(tmp_path / "images" / f"{i:02d}.png", pixels)
    stack = np.stack(images) / 255
    if channels == 1:
        stack = np.stack([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in sorted((tmp_path / "images").iterdir())])[..., None] / 255
    mean, std = scan_images(index_of(tmp_path / "images"), channels=channels).mean_std()
    assert mean == pytest.approx(stack.mean(axis=(0, 1, 2)), abs=1e-6)
    assert std == pytest.approx(stack.std(axis=(0, 1, 2)), abs=1e-6)


def test_images_of_all_sizes_weigh_the_same_in_the_mean(tmp_path: Path) -> None:
    """As in training, where each gives views of one size."""
    write_image(tmp_path / "images" / "a.png", np.zeros((8, 8, 3), np.uint8))
    write_image(tmp_path / "images" / "b.png", np.full((80, 80, 3), 255, np.uint8))
    mean, std = scan_images(index_of(tmp_path / "images")).mean_std()
    assert (mean.tolist(), std.tolist()) == ([0.5] * 3, [0.5] * 3)


def test_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    """The records and the failures, whatever the number of processes; all progress is told."""
    noise_folder(tmp_path / "images", 150)
    for i in (3, 70, 71):
        (tmp_path / "images" / f"{i:03d}.png").write_text("no image")
    index, told = index_of(tmp_path / "images"), []
    here = scan_images(index)
    there = scan_images(index, num_workers=2, progress=lambda done, total: told.append((done, total)))
    assert here.record_n.tobytes() == there.record_n.tobytes()
    assert here.failed == there.failed
    assert [(row, cause) for row, cause, _ in here.failed] == [(3, "undecodable"), (70, "undecodable"), (71, "undecodable")]
    assert told[-1] == (150, 150)
    assert here.record_n.dtype.itemsize <= 100


def die_or_hang(_: Reader, row_n: np.ndarray) -> list[int]:
    """A decoder with bugs."""
    for row in row_n.tolist():
        if row == 10:
            os.abort()
        if row == 100:
            time.sleep(60)
    return [2 * row for row in row_n.tolist()]


def test_an_image_that_ends_or_hangs_its_process_is_counted_and_the_others_are_done(tmp_path: Path) -> None:
    """Each other image is done exactly once."""
    noise_folder(tmp_path / "images", 2)
    found: dict[int, object] = {}
    rows = np.arange(200)
    for part, result in over_rows(die_or_hang, index_of(tmp_path / "images"), rows, num_workers=2, image_seconds=0.3):
        for row, one in zip(rows[part].tolist(), [CRASHED] if result == CRASHED else result, strict=True):
            assert row not in found
            found[row] = one
    assert found == {row: CRASHED if row in (10, 100) else 2 * row for row in range(200)}


def test_the_perceptual_hash_is_the_low_frequencies_above_their_median() -> None:
    """Oracle: the cosine transform as a matrix product."""
    small = thumbnail(cv2.GaussianBlur(noise(3, 90, 120)[..., 0], (0, 0), 5))
    k, n = np.mgrid[:32, :32]
    basis = np.cos(np.pi * (2 * n + 1) * k / 64) * np.where(k == 0, np.sqrt(1 / 32), np.sqrt(2 / 32))
    low = (basis @ small.astype(float) @ basis.T)[:8, :8].ravel()
    assert f"{perceptual_hash(small):064b}" == "".join("1" if value > np.median(low) else "0" for value in low)


@pytest.mark.parametrize("shape", [(500, 375), (33, 700), (1, 1), (128, 129, 3), (300, 200, 6)])
def test_a_thumbnail_is_the_mean_of_what_it_covers(shape: tuple[int, ...]) -> None:
    """Halving first changes at most what rounding and an odd last row do. Oracle: area interpolation at once, channel by channel."""
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (*shape[:2], 6), dtype=np.uint8), (0, 0), 4)
    pixels = np.ascontiguousarray(pixels[..., : shape[2]] if len(shape) > 2 else pixels[..., 0])
    layers = pixels.reshape(*shape[:2], -1)
    expected = np.dstack(
        [cv2.resize(np.ascontiguousarray(layers[..., i]), (32, 32), interpolation=cv2.INTER_AREA) for i in range(layers.shape[2])]
    )
    small = thumbnail(pixels)
    assert small.shape == (32, 32, *shape[2:])
    assert np.abs(small.reshape(32, 32, -1).astype(int) - expected).max() <= 4


class Page(HTMLParser):
    """Tags that are open, and all addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        assert tag not in ("script", "link", "iframe")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def odd_folder(root: Path) -> Path:
    """Nine images, in two folders: two are equal, one in its pixels, one nearly so; one is plain, two are unreadable, one is misnamed."""
    first = cv2.GaussianBlur(noise(0, 60, 80), (0, 0), 4)
    write_image(root / "cat" / "a.png", first)
    (root / "dog").mkdir(parents=True)
    (root / "dog" / "b.jpg").write_bytes((root / "cat" / "a.png").read_bytes())
    write_image(root / "dog" / "b2.bmp", first)
    write_image(root / "cat" / "c.png", cv2.resize(first, (160, 120)))
    write_image(root / "cat" / "d.png", cv2.GaussianBlur(noise(1, 300, 200), (0, 0), 4))
    write_image(root / "dog" / "p<i>.png", np.full((20, 20, 3), 9, np.uint8))
    (root / "dog" / "turned.jpg").write_bytes(saved(sample("RGB"), "JPEG", exif=sideways()))
    (root / "dog" / "<b>&.png").write_text("no image")
    (root / "dog" / "empty.png").touch()
    (root / "notes.txt").write_text("no image either")
    return root


def test_the_report_states_what_is_there_and_what_to_set(tmp_path: Path) -> None:
    """Counts by magic bytes, sizes as decoded, wrong negatives, causes."""
    index = index_of(odd_folder(tmp_path / "images"))
    about = inspect_images(index).about
    assert (about["num_images"], about["num_inspected"], about["num_readable"]) == (9, 9, 7)
    assert about["formats"] == {"png": 5, "bmp": 1, "jpeg": 1}
    assert (about["num_rotated"], about["num_plain"]) == (1, 1)
    assert about["labels"] == {"cat": 3, "dog": 6}
    assert about["sizes"]["smallest"] == [20, 20]
    assert about["sizes"]["largest"] == [200, 300]
    assert about["sizes"]["num_smaller_than"]["64"] == 5
    assert {cause: of_cause["names"] for cause, of_cause in about["unreadable"].items()} == {
        "empty": ["dog/empty.png"],
        "undecodable": ["dog/<b>&.png"],
    }
    assert about["skipped"] == {"with suffix '.txt'": {"count": 1, "examples": ["notes.txt"]}}
    duplicates = about["duplicates"]
    assert [duplicates[f"num_{what}"] for what in ("groups", "images", "wrong_negatives", "groups_of_several_labels")] == [1, 4, 6, 1]
    assert [duplicates[f"num_extra_{what}"] for what in ("same_bytes", "same_pixels", "near")] == [1, 1, 1]
    assert duplicates["groups"] == [["cat/a.png", "cat/c.png", "dog/b.jpg", "dog/b2.bmp"]]
    assert duplicates["share_of_images"] == 4 / 7
    assert about["suggested"]["duplicates"] == "share"
    assert about["suggested"]["image_size"] == 32
    assert np.load(index.directory / "duplicates.npy").tolist() == [0, 0, 2, 3, 0, 0, 6, 7, 8]


def test_the_page_is_whole_escaped_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    """All pictures are within it, and names are text."""
    index = index_of(odd_folder(tmp_path / "images"))
    html, numbers = write_report(index, inspect_images(index), tmp_path / "report" / "new")
    page = Page()
    page.feed(html.read_text())
    assert page.open == []
    assert len(page.addresses) == 4 + 7 + 7 + 7
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "url(" not in html.read_text()
    assert "<b>&.png" not in html.read_text()
    assert "<i>.png" not in html.read_text()
    assert "&lt;b&gt;&amp;.png" in html.read_text()
    assert re.search("4 images .57.14%. have a duplicate", html.read_text())
    assert json.loads(numbers.read_text())["num_images"] == 9


def test_a_limit_looks_at_fewer_and_keeps_no_groups(tmp_path: Path) -> None:
    """They would be those of a part."""
    index = index_of(odd_folder(tmp_path / "images"))
    about = inspect_images(index, limit=4).about
    assert (about["num_images"], about["num_inspected"]) == (9, 4)
    assert not (index.directory / "duplicates.npy").exists()


def test_a_folder_without_any_readable_image_gets_its_report(tmp_path: Path) -> None:
    """It says so, and suggests nothing."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).touch()
    index = index_of(tmp_path / "images")
    made = inspect_images(index)
    html, _ = write_report(index, made, tmp_path)
    assert (made.about["num_readable"], made.about["suggested"]) == (0, {})
    assert "No image can be read" in html.read_text()
