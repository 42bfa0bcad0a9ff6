"""Batches of views for training, and of evaluation views. Pixels travel as uint8; the device normalises them.

A batch follows from the seed, the step and which images can be read: not from the number of loader processes, nor from where a resume
starts. A loader process is handed the rows of its batch, and reads them through the memory-mapped index.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.spec import RunSpec
from trainer.data.device_augment import apply
from trainer.data.images import Images
from trainer.data.processes import in_order
from trainer.data.sampler import Sampler, rank_share, substitutes
from trainer.data.tasks import NUM_SPARES, Bad, Task
from trainer.data.views import EvaluationViews, Views

DECODED_BYTES = 512 * 2**20
"""Most memory per rank for decoded images; images that do not fit are decoded anew in each epoch."""


@dataclass(frozen=True)
class Batch:
    """A rank's share of a step. b = this rank's images, C = channels; of each kind of view (spec.view_kinds) V to an image, of side S."""

    views: tuple[Tensor, ...]
    """For each kind [b * V, C, S, S] uint8, channels last in memory; the views of one image are adjacent."""
    classes: tuple[Tensor, ...]
    """For each kind [b * V] int64: the class of the image that each view is of."""
    num_images: int
    """b"""
    global_images: int
    """Images in the step over all ranks."""
    step: int
    colours: tuple[Tensor, ...] | None
    """For each kind [b * V, n] float32: what is yet to be done to the colours, on the device (device_augment.py); None: nothing."""
    bad: list[Bad]
    """What could not be read of this share, and of what was to replace it."""
    read_seconds: float
    """How long its loader process waited for bytes, of"""
    seconds: float
    """the time that it took in all."""

    def parts(self, number: int) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None, Tensor]]:
        """Views, colours, and the classes of all views, of `number` parts, whose sizes differ by at most one view of each kind."""
        views, classes = _split(self.views, number), map(torch.cat, _split(self.classes, number))
        return zip(views, [None] * number if self.colours is None else _split(self.colours, number), classes, strict=True)


class ViewLoader:
    """Iterates over the rank's batches from `start_step` on, without end. A batch's views stand until the next but one is asked for: clone
    what is to be kept."""

    def __init__(
        self,
        images: Images,
        spec: RunSpec,
        rank: int,
        world_size: int,
        start_step: int,
        num_workers: int = 0,
        *,
        colours_on_device: bool = False,
    ) -> None:
        self.images, self.spec, self.rank, self.world_size, self.start_step = images, spec, rank, world_size, start_step
        self.num_workers, self.colours_on_device = num_workers, colours_on_device
        self.sampler = _sampler(images, spec)

    def __iter__(self) -> Iterator[Batch]:
        views = Views(self.images.index, self.spec, DECODED_BYTES // max(1, self.num_workers), colours_on_device=self.colours_on_device)
        most_images = -(-self.spec.optimizer.global_batch_size // self.world_size)
        answers = in_order(views, self._tasks(), self.num_workers, most_images)
        for step, made in zip(itertools.count(self.start_step), answers, strict=False):
            of_images = torch.from_numpy(self.images.classes(made.instances))
            classes = tuple(of_images.repeat_interleave(kind.number) for kind in self.spec.view_kinds)
            global_images = len(self.sampler.batch(step)[0])
            yield Batch(made.pixels, classes, len(of_images), global_images, step, made.colours, made.bad, made.read_seconds, made.seconds)

    def _tasks(self) -> Iterator[Task]:
        for step in itertools.count(self.start_step):
            instances, passes = (rank_share(of_all, self.rank, self.world_size) for of_all in self.sampler.batch(step))
            spares = substitutes(instances, passes, len(self.images), self.spec.seed, NUM_SPARES)
            yield Task(instances, self.images.rows(instances), passes, spares, self.images.rows(spares))


def _sampler(images: Images, spec: RunSpec) -> Sampler:
    data, sizes = spec.data, images.container_sizes() if spec.data.order == "shards" else None
    size = spec.optimizer.global_batch_size
    return Sampler(len(images), size, spec.seed, data.order, data.window, data.stride, sizes, data.shuffle_block)


def iterate_images(
    images: Images, instances: Sequence[int] | np.ndarray, spec: RunSpec, size: int, batch_size: int, num_workers: int = 0
) -> Iterator[tuple[Tensor, list[Bad]]]:
    """Evaluation views of these instances, in that order, [b, C, size, size] uint8, and what could not be read of them: a grey image stands
    for it. The views stand until the next but one batch is asked for."""
    chosen = np.asarray(instances, np.int64)
    chunks = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    tasks = (Task(chunk, images.rows(chunk)) for chunk in chunks)
    for made in in_order(EvaluationViews(images.index, spec, size), tasks, num_workers, batch_size):
        yield made.pixels[0], made.bad


def model_inputs(
    views: tuple[Tensor, ...], colours: tuple[Tensor, ...] | None, spec: RunSpec, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """A batch's views of each kind as the encoder takes them: [b, C, S, S] on the device, with what is left to be done to their colours."""
    later = colours or (None,) * len(views)
    return [_model_input(pixels, of_kind, spec, device, dtype) for pixels, of_kind in zip(views, later, strict=True)]


def _split(kinds: tuple[Tensor, ...], number: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(of_kind.tensor_split(number) for of_kind in kinds), strict=True)


def _model_input(pixels: Tensor, colours: Tensor | None, spec: RunSpec, device: torch.device, dtype: torch.dtype) -> Tensor:
    mean, std, pixels = spec.data.mean, spec.data.std, pixels.to(device, non_blocking=True)
    if colours is None:
        return normalise(pixels, mean, std).to(dtype)
    return apply(pixels, colours.to(device, non_blocking=True), spec.augmentation, mean, std, dtype)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std per channel of uint8 [b, C, H, W], as float32 on the images' device, channels last."""
    scale = 1 / (255 * torch.tensor(std, device=images.device, dtype=torch.float32))
    shift = torch.tensor(mean, device=images.device, dtype=torch.float32) * 255 * scale
    return images.float().mul_(scale[:, None, None]).sub_(shift[:, None, None])
