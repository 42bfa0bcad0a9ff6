"""Groups of images that are the same picture."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.images import write_image
from trainer.data.duplicates import (
    FILE,
    LEAST_CORRELATION,
    LEAST_DETAIL,
    MOST_BITS,
    correlation,
    detail,
    find_duplicates,
    join,
    load_groups,
    similar_hashes,
)
from trainer.data.index import Index, write_index
from trainer.data.inspect import gray, perceptual_hash, thumbnail
from trainer.data.reader import Reader, read_pixels
from trainer.data.sources import list_source


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth random colours, with a spectrum like a photograph's."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (2, 4, 8))
    low, high = smooth.min(), smooth.max()
    return ((smooth - low) / (high - low) * 255).astype(np.uint8)


def index_of(root: Path) -> Index:
    return write_index(list_source(str(root)), root.parent / f"{root.name}-index")


def groups_of(index: Index) -> list[set[str]]:
    group_n = find_duplicates(index, num_workers=0)
    found = [{index.name(int(row)) for row in np.flatnonzero(group_n == group)} for group in np.unique(group_n)]
    return [group for group in found if len(group) > 1]


def test_copies_in_another_file_format_size_and_tone_are_one_group(tmp_path: Path) -> None:
    """The same bytes, the same pixels, recompressed, enlarged, brightened; another picture, a mirrored and a recoloured one are none."""
    root, first = tmp_path / "images", picture(0)
    write_image(root / "a.png", first)
    (root / "b.png").write_bytes((root / "a.png").read_bytes())
    write_image(root / "c.bmp", first)
    write_image(root / "d.jpg", first)
    write_image(root / "e.png", cv2.resize(first, (200, 150)))
    write_image(root / "f.png", cv2.convertScaleAbs(first, alpha=0.9, beta=20))
    write_image(root / "g.png", picture(1))
    write_image(root / "h.png", first[:, ::-1])
    write_image(root / "i.png", np.dstack([255 - first[..., 2], first[..., 1], first[..., 0]]))
    assert groups_of(index_of(root)) == [{"a.png", "b.png", "c.bmp", "d.jpg", "e.png", "f.png"}]


def test_groups_are_those_that_comparing_all_pairs_gives(tmp_path: Path) -> None:
    """Oracle: the connected components of all pairs, found by a depth-first search; 240 pictures, two in five of them variants."""
    root, rng = tmp_path / "images", np.random.default_rng(0)
    for i in range(240):
        pixels = picture(i if i % 5 < 3 else int(rng.integers(60)))
        if i % 5 >= 3:  # from a slightly noisy copy to another picture
            pixels = np.clip(pixels + rng.normal(0, rng.uniform(0, 60), pixels.shape), 0, 255).astype(np.uint8)
        write_image(root / f"{i:03d}.png", pixels)
    index = index_of(root)
    reader = Reader(index)
    pixels_n = [read_pixels(reader, row) for row in range(len(index))]
    hash_n = [perceptual_hash(thumbnail(gray(pixels))) for pixels in pixels_n]
    flat_n = [thumbnail(pixels).astype(float).ravel() for pixels in pixels_n]
    fine_n = [flat - cv2.GaussianBlur(flat.reshape(32, 32, 3), (0, 0), 3).ravel() for flat in flat_n]
    alike: dict[int, set[int]] = {i: set() for i in range(240)}
    num_candidates = 0
    for i, j in itertools.combinations(range(240), 2):
        if (hash_n[i] ^ hash_n[j]).bit_count() <= MOST_BITS:
            num_candidates += 1
            if np.corrcoef(flat_n[i], flat_n[j])[0, 1] >= LEAST_CORRELATION and np.corrcoef(fine_n[i], fine_n[j])[0, 1] >= LEAST_DETAIL:
                alike[i].add(j)
                alike[j].add(i)
    expected = np.full(240, -1)
    for i in range(240):
        pending = [i]
        while pending:
            j = pending.pop()
            if expected[j] < 0:
                expected[j] = i
                pending += alike[j]
    assert num_candidates > (expected != np.arange(240)).sum() > 20
    assert np.array_equal(find_duplicates(index, num_workers=0), expected)


def test_like_hashes_are_found_without_comparing_all(tmp_path: Path) -> None:
    """Oracle: all pairs; hashes that crowd around few centres, so that many pairs are at 3, 4 and 5 bits."""
    rng = np.random.default_rng(1)
    centers = rng.integers(0, 2**64, 40, dtype=np.uint64)
    hash_n = np.array(
        [int(rng.choice(centers)) ^ sum(1 << int(bit) for bit in rng.choice(64, rng.integers(4), False)) for _ in range(600)], np.uint64
    )
    expected = {(i, j) for i, j in itertools.combinations(range(600), 2) if (int(hash_n[i]) ^ int(hash_n[j])).bit_count() <= MOST_BITS}
    found = [tuple(pair) for pair in similar_hashes(hash_n).tolist()]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_thousands_of_equal_hashes_are_chained_and_not_compared_all_with_all() -> None:
    """The number of pairs is bounded, and all are connected."""
    pairs = similar_hashes(np.full(5000, 0xDEADBEEF, np.uint64), most_neighbours=8)
    assert len(pairs) <= 8 * 5000
    assert (join(5000, pairs) == 0).all()
    assert similar_hashes(np.empty(0, np.uint64)).shape == (0, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))))
def test_joined_items_take_the_smallest_of_their_group(case: tuple[int, list[tuple[int, int]]]) -> None:
    """Oracle: sets that are merged one pair at a time."""
    num, pairs = case
    group = [{i} for i in range(num)]
    for i, j in pairs:
        merged = group[i] | group[j]
        for k in merged:
            group[k] = merged
    assert join(num, np.array(pairs, np.int64).reshape(-1, 2)).tolist() == [min(group[i]) for i in range(num)]


def test_the_correlation_is_pearsons_and_none_with_one_colour() -> None:
    """Oracle: numpy's corrcoef."""
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 5, 300), dtype=np.uint8)
    other[1] = 255 - one[1]
    assert correlation(one, other) == pytest.approx([np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)], abs=1e-5)
    assert (correlation(one, np.full_like(one, 7)) == 0).all()


def test_two_small_things_before_one_smooth_sky_are_two_pictures() -> None:
    """They correlate as a whole, and not in detail; a recompressed copy does in both. Of any number of channels."""
    sky = np.repeat(np.linspace(60, 250, 32, dtype=np.uint8)[:, None], 32, axis=1)
    birds = []
    for seed in (0, 1):
        bird = sky.copy()
        cv2.ellipse(bird, (14 + 3 * seed, 16), (5, 2), 90.0 * seed, 0, 360, 30, -1)
        birds.append(bird)
    copy = cv2.imdecode(cv2.imencode(".jpg", birds[0], [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_GRAYSCALE)
    for channels in (1, 3, 6):
        one, other, again = (np.repeat(image.reshape(1, -1, 1), channels, axis=2).reshape(1, -1) for image in (*birds, copy))
        assert correlation(one, other) > LEAST_CORRELATION
        assert correlation(detail(one), detail(other)) < LEAST_DETAIL
        assert correlation(one, again) > LEAST_CORRELATION
        assert correlation(detail(one), detail(again)) > LEAST_DETAIL


def test_plain_images_are_duplicates_only_where_they_are_equal(tmp_path: Path) -> None:
    """A plain image has no perceptual hash to speak of: black and white ones are not one group, nor two greys with the same faint noise."""
    root = tmp_path / "images"
    for name, level in (("a", 0), ("b", 0), ("c", 255), ("d", 1)):
        write_image(root / f"{name}.png", np.full((16, 16 + 4 * (name == "d"), 3), level, np.uint8))
    faint = np.random.default_rng(0).integers(0, 2, (16, 16, 3), dtype=np.uint8)
    for name, level in (("e", 100), ("f", 110)):
        write_image(root / f"{name}.png", faint + np.uint8(level))
    write_image(root / "g.bmp", np.zeros((16, 16, 3), np.uint8))
    assert groups_of(index_of(root)) == [{"a.png", "b.png", "g.bmp"}]


def test_unreadable_images_are_alone(tmp_path: Path) -> None:
    """Two empty files are no duplicates; a group's first image is its smallest row."""
    root = tmp_path / "images"
    for name in ("b.png", "d.png"):
        write_image(root / name, picture(0))
    for name in ("a.png", "c.png"):
        (root / name).touch()
    assert find_duplicates(index_of(root), num_workers=0).tolist() == [0, 1, 2, 1]


def test_groups_are_kept_beside_the_index_and_not_sought_again(tmp_path: Path) -> None:
    """Once found they are read; a file of another length, or a damaged one, is not believed."""
    root = tmp_path / "images"
    for name in ("a.png", "b.png"):
        write_image(root / name, picture(0))
    index = index_of(root)
    assert load_groups(index) is None
    assert find_duplicates(index, num_workers=0).tolist() == [0, 0]
    assert [file.name for file in index.directory.iterdir() if "duplicates" in file.name] == [FILE]
    (root / "a.png").unlink()
    calls: list[int] = []
    assert find_duplicates(index, num_workers=0, progress=lambda done, total: calls.append(done)).tolist() == [0, 0]
    assert calls == []
    for damage in (np.zeros(3, np.int64), np.array([0, 5]), np.zeros(2)):
        np.save(index.directory / FILE, damage)
        assert load_groups(index) is None
    (index.directory / FILE).write_bytes(b"half")
    assert load_groups(index) is None


def test_an_image_that_is_gone_is_alone(tmp_path: Path) -> None:
    """The index keeps its row; nothing is read there."""
    root = tmp_path / "images"
    for name in ("a.png", "b.png", "c.png"):
        write_image(root / name, picture(0))
    before = index_of(root)
    (root / "a.png").unlink()
    index = write_index(list_source(str(root)), tmp_path / "later", before)
    told: list[int] = []
    assert find_duplicates(index, num_workers=0, progress=lambda done, total: told.append(total)).tolist() == [0, 1, 1]
    assert told == [2]
