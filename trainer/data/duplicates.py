"""Groups of images that are the same picture.

For instance classification two copies of a picture are two classes that nothing can tell apart: each is a wrong negative of the other.

    exact   the bytes are the same, or the pixels are
    near    perceptual hashes differ by at most 4 of 64 bits, and the thumbnails correlate: another size, compression or tone

On the 50,000 training images of CIFAR-10 the hash alone gives 263 candidate pairs at 4 bits, of which 199 are confirmed, and 325 more
at 6 bits, of which 140 are: beyond 4 bits most candidates are wrong. Of 1,000 of them all copies are found
that are recompressed at quality 70, enlarged threefold or brightened, 96 % at quality 30 or half the size, 29 % without a border of one of
the 32 pixels. Crops and mirror images are not sought.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
from numpy.lib.format import open_memmap  # which reads no pickle

from trainer.data.decode import Unreadable
from trainer.data.index import Index
from trainer.data.inspect import THUMBNAIL, Scan, scan_images, thumbnail
from trainer.data.reader import Reader, read_pixels
from trainer.data.row_pool import CRASHED, over_rows
from trainer.durable import sync

FILE = "duplicates.npy"
"""Within the index's directory."""
MOST_BITS = 4
"""Perceptual hashes of near duplicates differ by at most so many of their 64 bits."""
LEAST_CORRELATION, LEAST_DETAIL = 0.9, 0.7
"""Of near duplicates' thumbnails, and of what is fine in them: two birds before one sky correlate by 0.98 as a whole and by 0.63 in detail.
By eye, on CIFAR-10: of pairs at 0.86 to 0.9 about a quarter are two pictures of a kind (airliners, cars before white), of those above
almost none."""
_DETAIL_SIGMA = 3
"""Pixels of a thumbnail: what a Gaussian blur of that width takes away is its detail."""
_BANDS = [np.uint64((2**bits - 1) << shift) for bits, shift in ((11, 0), (11, 11), (11, 22), (11, 33), (10, 44), (10, 54))]
"""Of a hash. Where at most 4 bits differ, at least two of the six bands are equal."""
_MOST_NEIGHBOURS = 256
"""Comparisons of an image with others of equal bands, for each two bands; more only thousands of frames of one still scene have."""
_NUM_BITS = np.array([bin(i).count("1") for i in range(2**16)], np.uint8)


@dataclass(frozen=True)
class Groups:
    """Of the n images of a scan: for each the first of its group, as a number within the scan, [n] int64; itself where it is alone.

    Each includes the one before it.
    """

    same_bytes_n: np.ndarray
    same_pixels_n: np.ndarray
    all_n: np.ndarray
    num_candidates: int
    """Pairs of images with like hashes, most of which the pixels confirm."""


def find_duplicates(index: Index, *, num_workers: int, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """For each row of the index the smallest row of its group, [N] int64: itself where it is alone, unreadable or gone.

    Kept beside the index, where it can be written, and taken from there. Raises BadData where no worker process can be started.
    """
    known = load_groups(index)
    if known is not None:
        return known
    scan = scan_images(index, num_workers=num_workers, progress=progress)
    return save_groups(index, scan, group_images(index, scan, num_workers=num_workers))


def load_groups(index: Index) -> np.ndarray | None:
    """What `find_duplicates` found before, [N] int64; None where it is not there, or not of this index."""
    try:
        group_n = np.array(open_memmap(index.directory / FILE, mode="r"))
    except (OSError, ValueError, EOFError):
        return None
    row_n = np.arange(len(index))
    is_ours = group_n.shape == row_n.shape and group_n.dtype == np.int64 and (group_n >= 0).all() and (group_n <= row_n).all()
    return group_n if is_ours else None


def save_groups(index: Index, scan: Scan, groups: Groups) -> np.ndarray:
    """Put the groups of a scan of all images beside the index, whole or, in a directory that cannot be written, not at all; [N] int64."""
    group_n = np.arange(len(index))
    group_n[scan.row_n] = scan.row_n[groups.all_n]
    temporary = index.directory / f".{FILE}.{secrets.token_hex(6)}.tmp.npy"
    try:
        np.save(temporary, group_n)
        sync(temporary)
        temporary.replace(index.directory / FILE)
    except OSError:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            return group_n
    return group_n


def group_images(index: Index, scan: Scan, *, num_workers: int) -> Groups:
    """Unreadable images are alone. Images of one plain colour have no near duplicates, only exact ones."""
    readable_n = np.flatnonzero(scan.readable_n)
    record_n = scan.record_n[readable_n]
    num_images = len(scan.row_n)
    by_bytes, by_pixels = (readable_n[_equal_pairs(record_n[name])] for name in ("content", "pixels"))
    same_bytes_n = join(num_images, by_bytes)
    same_pixels_n = join(num_images, np.concatenate([by_bytes, by_pixels]))
    firsts_n = readable_n[(same_pixels_n[readable_n] == readable_n) & ~record_n["plain"]]
    like = firsts_n[similar_hashes(scan.record_n["perceptual"][firsts_n])]
    near = like[_correlate(index, scan, like, num_workers)]
    all_n = join(num_images, np.concatenate([by_bytes, by_pixels, near]))
    return Groups(same_bytes_n, same_pixels_n, all_n, len(like))


def _equal_pairs(digest_n: np.ndarray) -> np.ndarray:
    """Neighbours in the sorted order of [n, 2] digests that are equal, [pairs, 2]: they connect all that are."""
    order = np.lexsort((digest_n[:, 1], digest_n[:, 0]))
    equal = (digest_n[order[1:]] == digest_n[order[:-1]]).all(axis=1)
    return np.stack([order[:-1][equal], order[1:][equal]], axis=1)


def similar_hashes(hash_n: np.ndarray, most_neighbours: int = _MOST_NEIGHBOURS) -> np.ndarray:
    """Pairs of [n] uint64 that differ by at most MOST_BITS bits, [pairs, 2] int64, each once, without comparing all with all.

    Of each two bands, those that agree in both are neighbours in the order of these; equal ones stand together, and each is compared
    with at most `most_neighbours` that follow.
    """
    found = [np.empty((0, 2), np.int64)]
    for i, j in combinations(range(len(_BANDS)), 2):
        key_n = hash_n & (_BANDS[i] | _BANDS[j])
        order = np.lexsort((hash_n, key_n))
        hashes, keys = hash_n[order], key_n[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        end = np.repeat(np.append(starts[1:], len(keys)), np.diff(np.append(starts, len(keys))))
        at = np.arange(len(keys))
        for shift in range(1, most_neighbours + 1):
            at = at[at + shift < end[at]]
            if not len(at):
                break
            differ = hashes[at] ^ hashes[at + shift]
            close = _NUM_BITS[differ.view(np.uint16).reshape(-1, 4)].sum(axis=1) <= MOST_BITS
            for band in {*range(j)} - {i}:  # else it was found with an earlier two
                close &= (differ & _BANDS[band]) != 0
            found.append(np.stack([order[at[close]], order[at[close] + shift]], axis=1))
    return np.sort(np.concatenate(found), axis=1)


def _correlate(index: Index, scan: Scan, pairs: np.ndarray, num_workers: int) -> np.ndarray:
    """Whether the thumbnails of pairs [p, 2] of the scan's images correlate by LEAST_CORRELATION, [p] bool."""
    image_n, number = np.unique(pairs, return_inverse=True)
    number = number.reshape(pairs.shape)
    confirmed = np.zeros(len(pairs), bool)
    if not len(pairs):
        return confirmed
    with tempfile.TemporaryFile() as file:  # of 10 million images the thumbnails are 30 GB: the system decides what stays in memory
        small_n = np.memmap(file, np.uint8, "w+", shape=(len(image_n), THUMBNAIL * THUMBNAIL * scan.channels))
        # As many as are worth a process: to start one takes as long as to read a thousand images.
        num_workers = min(num_workers, -(-len(image_n) // 1000)) if num_workers else 0
        for part, result in over_rows(_Thumbnails(scan.channels), index, scan.row_n[image_n], num_workers=num_workers):
            small_n[part] = 0 if isinstance(result, str) and result == CRASHED else result
        for start in range(0, len(pairs), 4096):
            one, other = (small_n[number[start : start + 4096, side]] for side in (0, 1))
            confirmed[start : start + 4096] = correlation(one, other) >= LEAST_CORRELATION
            confirmed[start : start + 4096] &= correlation(detail(one), detail(other)) >= LEAST_DETAIL
        del small_n
    return confirmed


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pearson's, of rows of pixels [n, P] and as many others, [n] float32; 0 where one is of one colour.

    Over all channels at once: a red shirt and a blue one are two pictures, a brighter or paler copy is the same.
    """
    one, other = (pixels.astype(np.float32) - pixels.mean(axis=1, keepdims=True, dtype=np.float32) for pixels in (one, other))
    norm = np.sqrt(np.square(one).sum(axis=1) * np.square(other).sum(axis=1))
    return np.einsum("np,np->n", one, other) / np.maximum(norm, 1e-6)


def detail(small_nP: np.ndarray) -> np.ndarray:
    """Thumbnails, a row each, without what is smooth in them, [n, P] float32."""
    images = small_nP.reshape(len(small_nP), THUMBNAIL, THUMBNAIL, -1).astype(np.float32)
    smooth = [cv2.GaussianBlur(image, (0, 0), _DETAIL_SIGMA).reshape(image.shape) for image in images]
    return (images - np.stack(smooth)).reshape(small_nP.shape)


@dataclass(frozen=True)
class _Thumbnails:
    """Of the images at some rows, [n, P] uint8; black where one became unreadable."""

    channels: int

    def __call__(self, reader: Reader, row_n: np.ndarray) -> np.ndarray:
        small_n = np.zeros((len(row_n), THUMBNAIL * THUMBNAIL * self.channels), np.uint8)
        for at, row in enumerate(row_n):
            try:
                small_n[at] = thumbnail(read_pixels(reader, int(row), self.channels)).ravel()
            except Unreadable:
                continue
        return small_n


def join(num: int, pairs: np.ndarray) -> np.ndarray:
    """The smallest member of each of `num` items' group, where pairs [p, 2] are in one group, [num] int64."""
    first_n = np.arange(num)
    while True:
        one, other = first_n[pairs[:, 0]], first_n[pairs[:, 1]]
        if np.array_equal(one, other):
            return first_n
        np.minimum.at(first_n, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(first_n, first_n[first_n]):
            first_n = first_n[first_n]
