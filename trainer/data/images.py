"""The images of a run: which rows of the index are its instances, and which class each is of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.spec import RunSpec
from trainer.data.duplicates import find_duplicates, load_groups
from trainer.data.files import is_url
from trainer.data.index import FOLDER_INDEX, Index, copy_index, evenly_spaced, is_fresh, write_index
from trainer.data.sources import list_source
from trainer.errors import BadData, BadSpec, DiskError


@dataclass(frozen=True)
class Images:
    """Instances 0 .. len - 1 of an index."""

    index: Index
    row_n: np.ndarray | None = None
    """The index's row of each instance; None: they are the same."""
    class_n: np.ndarray | None = None
    """The class of each instance, where duplicates share one; None: every instance is its own class."""

    def __len__(self) -> int:
        return len(self.index) if self.row_n is None else len(self.row_n)

    @property
    def num_classes(self) -> int:
        return len(self) if self.class_n is None else int(self.class_n.max()) + 1

    @property
    def sha256(self) -> str:
        """Names the images, their order and their classes."""
        digest = hashlib.sha256(self.index.sha256.encode())
        for array in (self.row_n, self.class_n):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def rows(self, instances: Sequence[int] | np.ndarray) -> np.ndarray:
        """Of the index, [n] int64."""
        chosen = np.asarray(instances, np.int64)
        return chosen if self.row_n is None else self.row_n[chosen]

    def classes(self, instances: Sequence[int] | np.ndarray) -> np.ndarray:
        """[n] int64."""
        chosen = np.asarray(instances, np.int64)
        return chosen if self.class_n is None else self.class_n[chosen]

    def name(self, instance: int) -> str:
        return self.index.full_name(int(self.rows([instance])[0]))

    def first_of_class(self) -> np.ndarray:
        """The first instance of each class, [num_classes] int64."""
        return np.unique(self.classes(np.arange(len(self))), return_index=True)[1]

    def container_sizes(self) -> tuple[int, ...]:
        """Images in each tar or parquet file. Raises BadSpec where there are none, or instances do not go through them in order."""
        if self.index.container_n is None:
            raise BadSpec(f"data.order is shards, and {self.index.root!r} is of single files: set it to shuffle")
        container_n = self.index.container_n if self.row_n is None else self.index.container_n[self.row_n]
        if np.any(container_n[1:] < container_n[:-1]):
            raise BadSpec("data.order is shards, and the index has images of a file apart from each other: remove it and make it anew")
        return tuple(np.bincount(container_n, minlength=len(self.index.containers)).tolist())

    def select(self, instances: Sequence[int] | np.ndarray) -> Images:
        """These alone, in this order; each its own class."""
        return Images(self.index, np.ascontiguousarray(self.rows(instances)))

    def limited(self, limit: int | None) -> Images:
        """At most `limit`, evenly spaced."""
        return self if limit is None or limit >= len(self) else self.select(evenly_spaced(len(self), limit))


def index_images(path: str | Path, directory: Path, limit: int | None = None, index: str | None = None) -> Images:
    """The images at `path`, by the index in `directory`, which is made where there is none yet.

    It is copied from the index that `index` names, or else from the folder's own where that is up to date.
    Raises BadData, and DiskError where it cannot be written.
    """
    return of_index(_open_or_make(os.fspath(path), directory, index)).limited(limit)


def prepare_images(spec: RunSpec, directory: Path, beat: Callable[[], None]) -> Images:
    """The run's images, indexed in `directory`; duplicates dealt with as the specification says. One rank calls. Raises BadData."""
    data = spec.data
    images = index_images(data.path, directory, None, data.index)
    if data.duplicates == "drop":
        images = without_duplicates(images, beat)
    images = images.limited(data.limit)
    return with_shared_classes(images, beat) if data.duplicates == "share" else images


def without_duplicates(images: Images, beat: Callable[[], None]) -> Images:
    """Of images with the same content the first alone."""
    return images.select(np.unique(_groups(images, beat), return_index=True)[1])


def with_shared_classes(images: Images, beat: Callable[[], None]) -> Images:
    """Images with the same content in one class; classes are numbered in the order of their first images."""
    _, first_n, group_n = np.unique(_groups(images, beat), return_index=True, return_inverse=True)
    class_of_group = np.empty(len(first_n), np.int64)
    class_of_group[np.argsort(first_n)] = np.arange(len(first_n))
    return Images(images.index, images.row_n, class_of_group[group_n])


def _groups(images: Images, beat: Callable[[], None]) -> np.ndarray:
    """For each instance the row of the index that stands for its group, [n] int64; kept beside the index."""
    group_n = load_groups(images.index)
    if group_n is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        group_n = find_duplicates(images.index, num_workers=cores - 1, progress=lambda done, total: beat())
    return group_n[images.rows(range(len(images)))]


def of_index(index: Index) -> Images:
    """All images of an index but those that are gone."""
    return Images(index) if index.gone_n is None else Images(index, np.flatnonzero(~index.gone_n))


def _open_or_make(path: str, directory: Path, named: str | None) -> Index:
    if (directory / "index.json").exists():  # of an earlier attempt: the run goes on with the images that it began with
        return Index(directory)
    try:
        if named is not None:
            found = Index(Path(named))
            if found.root not in (path, path.rpartition("/")[0] if found.kind == "list" else path):
                raise BadData(f"data.index {named!r} is of {found.root!r}, and data.path is {path!r}: index that, or correct one of them")
            return copy_index(found, directory)
        own = default_index(path)
        if own is not None and (own / "index.json").exists():
            found = Index(own)
            if is_fresh(found, path):
                found.root = path if found.kind != "list" else found.root
                return copy_index(found, directory)
        return write_index(list_source(path), directory)
    except OSError as error:
        raise DiskError(f"the index of {path!r} cannot be written to {str(directory)!r} ({error}): make room there") from None


def default_index(path: str) -> Path | None:
    """Where `millionway index` puts the index of `path`, and a run looks for it; none for a URL."""
    if is_url(path):
        return None
    at = Path(path)
    return at / FOLDER_INDEX if at.is_dir() else at.with_name(f".{at.name}{FOLDER_INDEX}")
