"""Batches of views for training, and of evaluation views. Pixels travel as uint8; `normalise` runs on the device.

A batch follows from the seed and the step alone: not from the number of loader processes, nor from where a resume starts.
A loader process is handed the paths of its batch, so that none of them holds the list of a hundred million.
"""

from __future__ import annotations

import atexit
import faulthandler
import itertools
import logging
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from service.spec import RunSpec
from trainer.data.augment import augment, evaluation_view, view_rng
from trainer.data.images import ImageFolder, read_image
from trainer.data.sampler import batch_instances, rank_share, steps_per_epoch
from trainer.errors import BadData

log = logging.getLogger(__name__)

DECODED_BYTES = 512 * 2**20
"""Most memory per rank for decoded images; a folder that does not fit is decoded anew in each epoch."""


@dataclass(frozen=True)
class Batch:
    """A rank's share of a step. V = views_per_image, b = this rank's images, S = image_size."""

    images: Tensor
    """[b * V, 3, S, S] uint8, channels last in memory; the views of one image are adjacent."""
    instances: Tensor
    """[b * V] int64: the image that each view is of."""
    global_size: int
    """Views in the step over all ranks."""
    step: int
    unreadable: list[str]
    """Files of this share that could not be decoded: a grey image stands for each."""

    def parts(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and instances of `number` parts, whose sizes differ by at most one view."""
        return zip(self.images.tensor_split(number), self.instances.tensor_split(number), strict=True)


class ViewLoader:
    """Iterates over the rank's batches from `start_step` on, without end."""

    def __init__(self, folder: ImageFolder, spec: RunSpec, rank: int, world_size: int, start_step: int) -> None:
        self.folder, self.spec, self.rank, self.world_size, self.start_step = folder, spec, rank, world_size, start_step

    def __iter__(self) -> Iterator[Batch]:
        views = _Views(self.spec, DECODED_BYTES // max(1, self.spec.data.num_workers))
        batches = _in_order(views, self._tasks(), self.spec.data.num_workers)
        known_unreadable: set[str] = set()
        for step, (images, unreadable) in zip(itertools.count(self.start_step), batches, strict=False):
            _warn(path for path in unreadable if path not in known_unreadable)
            known_unreadable.update(unreadable)
            share, global_size = self._share(step)
            num_views = self.spec.augmentation.views_per_image
            instances = torch.from_numpy(share.repeat(num_views))
            yield Batch(images, instances, global_size * num_views, step, unreadable)

    def _share(self, step: int) -> tuple[np.ndarray, int]:
        """This rank's instances of a step, and the number of images in the step over all ranks."""
        num_images, size, seed = len(self.folder), self.spec.optimizer.global_batch_size, self.spec.seed
        batch = batch_instances(num_images, size, seed, *divmod(step, steps_per_epoch(num_images, size)))
        return rank_share(batch, self.rank, self.world_size), len(batch)

    def _tasks(self) -> Iterator[_Task]:
        per_epoch = steps_per_epoch(len(self.folder), self.spec.optimizer.global_batch_size)
        for step in itertools.count(self.start_step):
            instances = self._share(step)[0].tolist()
            yield _Task(instances, [self.folder.file(i) for i in instances], step // per_epoch)


def iterate_images(
    folder: ImageFolder, indices: Sequence[int] | np.ndarray, size: int, batch_size: int, num_workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Evaluation views of the images at `indices`, in that order: ([b, 3, size, size] uint8, [b] int64 indices)."""
    all_indices = np.asarray(indices, np.int64)
    chunks = [all_indices[start : start + batch_size] for start in range(0, len(all_indices), batch_size)]
    tasks = (_Task(chunk.tolist(), [folder.file(i) for i in chunk]) for chunk in chunks)
    for chunk, (images, unreadable) in zip(chunks, _in_order(_EvaluationViews(size), tasks, num_workers), strict=True):
        _warn(unreadable)
        yield images, torch.from_numpy(chunk)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std per channel of uint8 [b, 3, H, W], as float32 on the images' device, channels last."""
    scale = 1 / (255 * torch.tensor(std, device=images.device, dtype=torch.float32))
    shift = torch.tensor(mean, device=images.device, dtype=torch.float32) * 255 * scale
    return images.float().mul_(scale[:, None, None]).sub_(shift[:, None, None])


@dataclass(frozen=True)
class _Task:
    """What a loader process needs to know about a batch."""

    instances: list[int]
    files: list[str]
    epoch: int = 0


class _Views(Dataset[tuple[Tensor, list[str]]]):
    """Augmented views of a task's images."""

    def __init__(self, spec: RunSpec, decoded_bytes: int) -> None:
        self.spec = spec
        self.room = decoded_bytes
        self.decoded: dict[str, np.ndarray] | None = {}

    def __getitem__(self, task: _Task) -> tuple[Tensor, list[str]]:
        spec, size, num_views = self.spec.augmentation, self.spec.data.image_size, self.spec.augmentation.views_per_image
        views, unreadable = np.empty((len(task.files), num_views, size, size, 3), np.uint8), []
        for i, (instance, file) in enumerate(zip(task.instances, task.files, strict=True)):
            image = self._image(file)
            if image is None:
                unreadable.append(file)
                image = _gray(size)
            for view in range(num_views):
                views[i, view] = augment(image, spec, size, view_rng(self.spec.seed, task.epoch, instance, view))
        return _as_tensor(views.reshape(-1, size, size, 3)), unreadable

    def _image(self, file: str) -> np.ndarray | None:
        image = self.decoded.get(file) if self.decoded is not None else None
        if image is not None:
            return image
        image = _read(file)
        if self.decoded is not None and image is not None:
            self.room -= image.nbytes
            if self.room < 0:
                self.decoded = None  # what fits only in part gains little and holds the memory
            else:
                self.decoded[file] = image
        return image


class _EvaluationViews(Dataset[tuple[Tensor, list[str]]]):
    """Evaluation views of a task's images."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, task: _Task) -> tuple[Tensor, list[str]]:
        views, unreadable = np.empty((len(task.files), self.size, self.size, 3), np.uint8), []
        for i, file in enumerate(task.files):
            image = _read(file)
            if image is None:
                unreadable.append(file)
                image = _gray(self.size)
            views[i] = evaluation_view(image, self.size)
        return _as_tensor(views), unreadable


def _read(file: str) -> np.ndarray | None:
    try:
        return read_image(file)
    except BadData:
        return None


def _warn(unreadable: Iterable[str]) -> None:
    for path in unreadable:
        log.warning("cannot decode %r: a grey image stands for it", path)


def _gray(size: int) -> np.ndarray:
    return np.full((size, size, 3), 128, np.uint8)


def _as_tensor(views: np.ndarray) -> Tensor:
    """[n, H, W, 3] as a [n, 3, H, W] tensor over the same memory: channels last, no copy."""
    return torch.from_numpy(views).permute(0, 3, 1, 2)


def _in_order(dataset: Dataset[tuple[Tensor, list[str]]], tasks: Iterator[_Task], num_workers: int) -> Iterator[tuple[Tensor, list[str]]]:
    """The dataset's answer to each task, in order; computed in this process or by `num_workers` others."""
    if num_workers == 0:
        cv2.setNumThreads(0)
        return (dataset[task] for task in tasks)
    loader = DataLoader(
        dataset,
        batch_size=None,  # a task is a batch
        sampler=tasks,  # type: ignore[arg-type]
        num_workers=num_workers,
        generator=torch.Generator(),  # else it draws from the global one, which a resume puts back
        multiprocessing_context="spawn",  # a fork of a process with threads (gloo, OpenMP, CUDA) may hang
        worker_init_fn=_start_loader_process,
        collate_fn=_unchanged,
    )
    return iter(loader)


def _start_loader_process(_: int) -> None:
    cv2.setNumThreads(0)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # as its rank (trainer/__main__.py)
    # Its own process group: a SIGTERM to the job's group means "stop with a checkpoint", and the last batches need their
    # loader. It ends with its parent: torch's worker loop looks for that.
    os.setpgid(0, 0)
    # Skip the interpreter's finalisation: it aborts the process where the thread that shares a prefetched batch is still in C++.
    atexit.register(os._exit, 0)


def _unchanged(item: tuple[Tensor, list[str]]) -> tuple[Tensor, list[str]]:
    return item
