"""Batches of views for training, and of evaluation views. Pixels travel as uint8; the device normalises them.

A batch follows from the seed, the step and which images can be read: not from the number of loader processes, nor from where a resume
starts. A loader process is handed the rows of its batch, and reads them through the memory-mapped index.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from service.spec import RunSpec
from trainer.data.augment import augment, evaluation_view, view_rng
from trainer.data.decode import Unreadable, decode
from trainer.data.images import Images
from trainer.data.index import Index
from trainer.data.processes import in_order
from trainer.data.reader import Reader
from trainer.data.reading import ReadAhead
from trainer.data.sampler import Sampler, rank_share, substitutes

DECODED_BYTES = 512 * 2**20
"""Most memory per rank for decoded images; images that do not fit are decoded anew in each epoch."""
NUM_SPARES = 4
"""Other images that are tried in the place of one that cannot be read; after them a grey one stands for it."""


@dataclass(frozen=True)
class Bad:
    """An image that could not be used."""

    row: int
    """Of the index."""
    cause: str
    message: str


@dataclass(frozen=True)
class Batch:
    """A rank's share of a step. V = views_per_image, b = this rank's images, S = image_size, C = channels."""

    images: Tensor
    """[b * V, C, S, S] uint8, channels last in memory; the views of one image are adjacent."""
    classes: Tensor
    """[b * V] int64: the class of the image that each view is of."""
    global_size: int
    """Views in the step over all ranks."""
    step: int
    bad: list[Bad]
    """What could not be read of this share, and of what was to replace it."""
    read_seconds: float
    """How long its loader process waited for bytes, of"""
    seconds: float
    """the time that it took in all."""

    def parts(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and classes of `number` parts, whose sizes differ by at most one view."""
        return zip(self.images.tensor_split(number), self.classes.tensor_split(number), strict=True)


class ViewLoader:
    """Iterates over the rank's batches from `start_step` on, without end."""

    def __init__(self, images: Images, spec: RunSpec, rank: int, world_size: int, start_step: int, num_workers: int = 0) -> None:
        self.images, self.spec, self.rank, self.world_size, self.start_step = images, spec, rank, world_size, start_step
        self.num_workers = num_workers
        self.sampler = _sampler(images, spec)

    def __iter__(self) -> Iterator[Batch]:
        views = _Views(self.images.index, self.spec, DECODED_BYTES // max(1, self.num_workers))
        num_views = self.spec.augmentation.views_per_image
        answers = in_order(views, self._tasks(), self.num_workers)
        for step, made in zip(itertools.count(self.start_step), answers, strict=False):
            classes = torch.from_numpy(self.images.classes(made.instances).repeat(num_views))
            global_size = len(self.sampler.batch(step)[0]) * num_views
            yield Batch(made.pixels, classes, global_size, step, made.bad, made.read_seconds, made.seconds)

    def _tasks(self) -> Iterator[_Task]:
        for step in itertools.count(self.start_step):
            instances, passes = (rank_share(of_all, self.rank, self.world_size) for of_all in self.sampler.batch(step))
            spares = substitutes(instances, passes, len(self.images), self.spec.seed, NUM_SPARES)
            yield _Task(instances, self.images.rows(instances), passes, spares, self.images.rows(spares))


def _sampler(images: Images, spec: RunSpec) -> Sampler:
    data, sizes = spec.data, images.container_sizes() if spec.data.order == "shards" else None
    size = spec.optimizer.global_batch_size
    return Sampler(len(images), size, spec.seed, data.order, data.window, data.stride, sizes, data.shuffle_block)


def iterate_images(
    images: Images, instances: Sequence[int] | np.ndarray, spec: RunSpec, size: int, batch_size: int, num_workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Evaluation views of these instances, in that order: ([b, C, size, size] uint8, [b] int64 instances). A grey image stands for one that
    cannot be read."""
    chosen = np.asarray(instances, np.int64)
    chunks = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    tasks = (_Task(chunk, images.rows(chunk)) for chunk in chunks)
    for chunk, made in zip(chunks, in_order(_EvaluationViews(images.index, spec, size), tasks, num_workers), strict=True):
        yield made.pixels, torch.from_numpy(chunk)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std per channel of uint8 [b, C, H, W], as float32 on the images' device, channels last."""
    scale = 1 / (255 * torch.tensor(std, device=images.device, dtype=torch.float32))
    shift = torch.tensor(mean, device=images.device, dtype=torch.float32) * 255 * scale
    return images.float().mul_(scale[:, None, None]).sub_(shift[:, None, None])


@dataclass(frozen=True)
class _Task:
    """What a loader process needs to know about a batch of n images."""

    instances: np.ndarray
    rows: np.ndarray
    passes: np.ndarray | None = None
    """[n], the pass over the images that each view belongs to."""
    spare_instances: np.ndarray | None = None
    """[n, NUM_SPARES]"""
    spare_rows: np.ndarray | None = None


@dataclass(frozen=True)
class _Made:
    pixels: Tensor
    instances: np.ndarray
    """Those of the task, but for replaced images."""
    bad: list[Bad]
    read_seconds: float
    seconds: float


class _Decoder:
    """Pixels of the rows of an index, in a loader process. Pickles; opens the files where it is used."""

    def __init__(self, index: Index, spec: RunSpec, decoded_bytes: int = 0) -> None:
        self.index, self.spec = index, spec
        self.room = decoded_bytes
        self.decoded: dict[int, np.ndarray] | None = {} if decoded_bytes else None
        self.read_seconds = 0.0
        self._ahead: ReadAhead | None = None

    def pixels(self, rows: Sequence[int] | np.ndarray) -> Iterator[np.ndarray | Unreadable]:
        """[H, W, C] of each row, in order."""
        if self._ahead is None:
            data = self.spec.data
            reader = Reader(self.index, round(data.cache_gib * 2**30))
            self._ahead = ReadAhead(reader, data.read_timeout_seconds)
        wanted = [int(row) for row in rows]
        decoded = self.decoded if self.decoded is not None else {}
        arriving = self._ahead.read([row for row in wanted if row not in decoded])
        for row in wanted:
            if (image := decoded.get(row)) is not None:
                yield image
                continue
            begun = time.perf_counter()
            data_or_error = next(arriving)
            self.read_seconds += time.perf_counter() - begun
            yield self._decode(row, data_or_error)

    def _decode(self, row: int, data: bytes | Unreadable) -> np.ndarray | Unreadable:
        if isinstance(data, Unreadable):
            return data
        try:
            image = decode(data, self.spec.data.channels)
        except Unreadable as error:
            return error
        if self.decoded is not None:
            self.room -= image.nbytes
            if self.room < 0:
                self.decoded = None  # what fits only in part gains little and holds the memory
            else:
                self.decoded[row] = image
        return image


class _Views(Dataset[_Made]):
    """Augmented views of a task's images."""

    def __init__(self, index: Index, spec: RunSpec, decoded_bytes: int) -> None:
        self.spec = spec
        self.decoder = _Decoder(index, spec, decoded_bytes)

    def __getitem__(self, task: _Task) -> _Made:
        begun, read_before = time.perf_counter(), self.decoder.read_seconds
        spec, size, num_views = self.spec.augmentation, self.spec.data.image_size, self.spec.augmentation.views_per_image
        views = np.empty((len(task.rows), num_views, size, size, self.spec.data.channels), np.uint8)
        instances, bad = task.instances.copy(), []
        assert task.passes is not None
        for i, image in enumerate(self.decoder.pixels(task.rows)):
            if isinstance(image, Unreadable):
                bad.append(Bad(int(task.rows[i]), image.cause, str(image)))
                instances[i], image = self._replacement(task, i, bad)
            for view in range(num_views):
                rng = view_rng(self.spec.seed, int(task.passes[i]), int(instances[i]), view)
                views[i, view] = augment(image, spec, size, rng)
        pixels = _as_tensor(views.reshape(-1, *views.shape[2:]))
        return _Made(pixels, instances, bad, self.decoder.read_seconds - read_before, time.perf_counter() - begun)

    def _replacement(self, task: _Task, i: int, bad: list[Bad]) -> tuple[int, np.ndarray]:
        """The first of the spare images that can be read; a grey one of the image's own class where none can."""
        assert task.spare_rows is not None
        assert task.spare_instances is not None
        for instance, row in zip(task.spare_instances[i], task.spare_rows[i], strict=True):
            image = next(iter(self.decoder.pixels([row])))
            if not isinstance(image, Unreadable):
                return int(instance), image
            bad.append(Bad(int(row), image.cause, str(image)))
        return int(task.instances[i]), _gray(self.spec)


class _EvaluationViews(Dataset[_Made]):
    """Evaluation views of a task's images."""

    def __init__(self, index: Index, spec: RunSpec, size: int) -> None:
        self.spec, self.size = spec, size
        self.decoder = _Decoder(index, spec)

    def __getitem__(self, task: _Task) -> _Made:
        begun, bad = time.perf_counter(), []
        views = np.empty((len(task.rows), self.size, self.size, self.spec.data.channels), np.uint8)
        for i, image in enumerate(self.decoder.pixels(task.rows)):
            if isinstance(image, Unreadable):
                bad.append(Bad(int(task.rows[i]), image.cause, str(image)))
            views[i] = evaluation_view(_gray(self.spec) if isinstance(image, Unreadable) else image, self.size)
        return _Made(_as_tensor(views), task.instances, bad, self.decoder.read_seconds, time.perf_counter() - begun)


def _gray(spec: RunSpec) -> np.ndarray:
    return np.full((spec.data.image_size, spec.data.image_size, spec.data.channels), 128, np.uint8)


def _as_tensor(views: np.ndarray) -> Tensor:
    """[n, H, W, C] as a [n, C, H, W] tensor over the same memory: channels last, no copy."""
    return torch.from_numpy(views).permute(0, 3, 1, 2)
