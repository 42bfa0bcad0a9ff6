"""What loader processes are asked for, and what they answer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainer.data.batch_memory import BatchMemory
from trainer.data.decoder import Decoder

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
class Task:
    """What a loader process needs to know about a batch of n images."""

    instances: np.ndarray
    rows: np.ndarray
    passes: np.ndarray | None = None
    """[n], the pass over the images that each view belongs to."""
    spare_instances: np.ndarray | None = None
    """[n, NUM_SPARES]"""
    spare_rows: np.ndarray | None = None
    slot: int = 0
    """Of the batch memory, where the views are to be written."""


@dataclass(frozen=True)
class Made:
    """The answer to a task."""

    instances: np.ndarray
    """Those of the task, but for replaced images."""
    bad: list[Bad]
    read_seconds: float
    seconds: float
    drawn: tuple[np.ndarray, ...] | None = None
    """For each kind of view what is to be done to its colours, where that is left to the device."""
    colours: tuple[Tensor, ...] | None = None
    """The same; not yet where it was made."""
    pixels: tuple[Tensor, ...] = ()
    """For each kind of view, those of all images; not yet where it was made."""

    def pinned(self) -> Made:
        """In memory from which a GPU copies beside its work."""
        colours = None if self.colours is None else _pinned(self.colours)
        return replace(self, pixels=_pinned(self.pixels), colours=colours)


class MadeInMemory(Dataset[Made], ABC):
    """Answers to tasks, whose pixels stand in `memory`."""

    decoder: Decoder
    memory: BatchMemory

    @abstractmethod
    def shapes(self, n: int) -> list[tuple[int, ...]]:
        """Of the arrays of pixels of n images, one for each kind of view: [n, views, S, S, C]."""

    def allocate(self, num_slots: int, most_images: int) -> None:
        """Memory for so many batches at a time. Raises OSError."""
        self.memory = BatchMemory(num_slots, sum(map(math.prod, self.shapes(most_images))))

    def with_pixels(self, made: Made, task: Task) -> Made:
        """The answer with its views, each kind [n * views, C, S, S]: channels last, over the memory of the task's slot."""
        arrays = self.memory.arrays(task.slot, self.shapes(len(task.rows)))
        pixels = tuple(torch.from_numpy(views).flatten(0, 1).permute(0, 3, 1, 2) for views in arrays)
        return replace(made, pixels=pixels, colours=None if made.drawn is None else tuple(map(torch.from_numpy, made.drawn)))


def _pinned(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.pin_memory() for tensor in tensors)
