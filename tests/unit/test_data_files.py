"""Files at URLs, and the cache of what came from there."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.images import indexed, noise_folder
from trainer.data.files import CACHE_DIR, Files
from trainer.data.images import Images, index_images
from trainer.data.reader import Reader, read_pixels
from trainer.errors import BadData


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket() -> Iterator[str]:
    """An object store in this process's memory."""
    memory = fsspec.filesystem("memory")
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def upload(folder: Path, bucket: str) -> None:
    memory = fsspec.filesystem("memory")
    for file in (entry for entry in folder.iterdir() if entry.is_file()):
        memory.pipe_file(f"{bucket}/{file.name}", file.read_bytes())


def all_pixels(images: Images, cache_bytes: int = 0) -> list[np.ndarray]:
    reader = Reader(images.index, cache_bytes)
    return [read_pixels(reader, row) for row in range(len(images))]


def test_a_bucket_of_images_or_of_tars_gives_what_a_folder_gives(tmp_path: Path, bucket: str) -> None:
    """Found, in order, and pixel by pixel; of a tar only the image's own bytes are fetched."""
    folder = noise_folder(tmp_path / "images", 7)
    expected = all_pixels(indexed(folder))
    upload(folder, f"{bucket}/images")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for file in sorted(folder.glob("*.png")):
            tar.add(file, file.name)
    upload(tmp_path, f"{bucket}/shards")
    for name in ("images", "shards", "shards/0.tar"):
        images = index_images(f"{bucket}/{name}", tmp_path / name.replace("/", "-"))
        assert [Path(images.name(i)).name for i in range(7)] == [f"{i:03d}.png" for i in range(7)]
        assert all(np.array_equal(a, b) for a, b in zip(all_pixels(images), expected, strict=True))


def test_what_was_fetched_is_not_fetched_again_while_the_cache_has_room(tmp_path: Path, bucket: str, cache: Path) -> None:
    """And the cache stays within its bound, whatever has gone through it."""
    upload(noise_folder(tmp_path / "images", 40), bucket)
    images = index_images(bucket, tmp_path / "index")
    expected = all_pixels(images, 2**30)
    for file in fsspec.filesystem("memory").ls("/bucket", detail=False):
        fsspec.filesystem("memory").rm(file)
    assert all(np.array_equal(a, b) for a, b in zip(all_pixels(images, 2**30), expected, strict=True))
    upload(tmp_path / "images", bucket)
    for file in cache.rglob("*"):
        if file.is_file():
            file.unlink()
    bound = 64 * 2000  # an image of noise takes 1,800 bytes: one in each of the cache's folders
    all_pixels(images, bound)
    assert 0 < sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) <= bound


def test_a_protocol_that_is_not_installed_is_named() -> None:
    """With what to install, in fsspec's words."""
    with pytest.raises(BadData, match=r"cannot be opened: .*nonsense"):
        _ = Files("nonsense://bucket").remote
