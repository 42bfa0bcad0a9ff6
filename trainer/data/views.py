"""What a loader process does: bytes, pixels, views."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from service.spec import RunSpec
from trainer.data.augment import (
    Colours,
    Geometry,
    ViewDraws,
    apply_colours,
    apply_geometry,
    colours_as_array,
    draw_colours,
    draw_geometry,
    evaluation_view,
)
from trainer.data.batch_memory import BatchMemory
from trainer.data.decode import Unreadable, decode
from trainer.data.headers import upright_shape
from trainer.data.index import Index
from trainer.data.reader import Reader
from trainer.data.reading import ReadAhead

DECODE_SECONDS = 120
"""A decoder that takes longer is taken to hang, and its loader process is ended."""
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
    colours: tuple[Tensor, ...] | None = None
    """For each kind of view, where they are left to the device."""
    pixels: tuple[Tensor, ...] = ()
    """For each kind of view, those of all images; not yet where it was made."""

    def pinned(self) -> Made:
        """In memory from which a GPU copies beside its work."""
        colours = None if self.colours is None else _pinned(self.colours)
        return replace(self, pixels=_pinned(self.pixels), colours=colours)


class Decoder:
    """Pixels of the rows of an index. Pickles; opens the files where it is used."""

    def __init__(self, index: Index, spec: RunSpec, decoded_bytes: int = 0) -> None:
        """`decoded_bytes`: how much memory decoded images may take; what they take is given back once not all fit."""
        self.index, self.spec = index, spec
        self.room = decoded_bytes
        self.decoded: dict[int, np.ndarray] | None = {} if decoded_bytes else None
        self.read_seconds = 0.0
        self.notes: Path | None = None
        """Where a loader process notes what it decodes, by its number: one int64, the row + 1."""
        self.crashers: frozenset[int] = frozenset()
        """Rows that have ended a process that decoded them."""
        self._note: np.ndarray | None = None
        self._ahead: ReadAhead | None = None

    def encoded(self, rows: Sequence[int] | np.ndarray) -> Iterator[bytes | np.ndarray | Unreadable]:
        """The bytes of each row in order, or its pixels [H, W, C] where they were kept."""
        if self._ahead is None:
            data = self.spec.data
            reader = Reader(self.index, round(data.cache_gib * 2**30), data.read_timeout_seconds / 2)
            self._ahead = ReadAhead(reader, data.read_timeout_seconds)
        wanted = [int(row) for row in rows]
        decoded = self.decoded if self.decoded is not None else {}
        kept = [decoded.get(row) for row in wanted]  # now: others may be kept while this goes on
        arriving = self._ahead.read([row for row, image in zip(wanted, kept, strict=True) if image is None])
        for image in kept:
            if image is not None:
                yield image
                continue
            begun = time.perf_counter()
            found = next(arriving)
            self.read_seconds += time.perf_counter() - begun
            yield found

    def pixels(self, row: int, found: bytes | np.ndarray | Unreadable, reduce: int = 1) -> np.ndarray:
        """[H, W, C]. Raises Unreadable."""
        if isinstance(found, Unreadable):
            raise found
        if isinstance(found, np.ndarray):
            return found
        if self.notes is not None:
            if row in self.crashers:
                raise Unreadable("crashes the decoder", f"processes that decoded it have died, or took longer than {DECODE_SECONDS} s")
            self._take_note(row)
            signal.alarm(DECODE_SECONDS)  # the system ends the process then, whatever holds its interpreter
        try:
            image = decode(found, self.spec.data.channels, reduce)
        except MemoryError:
            raise Unreadable("too large", "there is no memory for its pixels") from None
        finally:
            if self.notes is not None:
                signal.alarm(0)
        # One that may be wanted at a part of its size is not kept: whether it still is would change its views.
        if self.decoded is not None and min(image.shape[:2]) < 2 * self.spec.data.image_size and reduce == 1:
            self.room -= image.nbytes
            if self.room < 0:
                self.decoded = None  # what fits only in part gains little and holds the memory
            else:
                self.decoded[row] = image
        return image

    def _take_note(self, row: int) -> None:
        worker = get_worker_info()
        if self._note is None:
            assert worker is not None
            self._note = np.memmap(self.notes, np.int64, "r+")[worker.id : worker.id + 1]
        self._note[0] = row + 1


class MadeInMemory(Dataset[Made]):
    """Answers to tasks, whose pixels stand in `memory`."""

    decoder: Decoder
    memory: BatchMemory

    def shapes(self, n: int) -> list[tuple[int, ...]]:
        """Of the arrays of pixels of n images, one for each kind of view: [n, views, S, S, C]."""
        raise NotImplementedError

    def allocate(self, num_slots: int, most_images: int) -> None:
        """Memory for so many batches at a time. Raises OSError."""
        self.memory = BatchMemory(num_slots, sum(map(math.prod, self.shapes(most_images))))

    def with_pixels(self, made: Made, task: Task) -> Made:
        """The answer with its views, each kind [n * views, C, S, S]: channels last, over the memory of the task's slot."""
        arrays = self.memory.arrays(task.slot, self.shapes(len(task.rows)))
        return replace(made, pixels=tuple(torch.from_numpy(views).flatten(0, 1).permute(0, 3, 1, 2) for views in arrays))


class Views(MadeInMemory):
    """Augmented views of a task's images."""

    def __init__(self, index: Index, spec: RunSpec, decoded_bytes: int, *, colours_on_device: bool) -> None:
        self.spec, self.colours_on_device = spec, colours_on_device
        self.decoder = Decoder(index, spec, decoded_bytes)
        self._kinds = [kind for kind in spec.view_kinds for _ in range(kind.number)]
        self._draws: ViewDraws | None = None

    def shapes(self, n: int) -> list[tuple[int, ...]]:
        return [(n, kind.number, kind.size, kind.size, self.spec.data.channels) for kind in self.spec.view_kinds]

    def __getitem__(self, task: Task) -> Made:
        begun, read_before = time.perf_counter(), self.decoder.read_seconds
        views = self.memory.arrays(task.slot, self.shapes(len(task.rows)))
        instances, bad, colours = task.instances.copy(), [], []
        assert task.passes is not None
        for i, found in enumerate(self.decoder.encoded(task.rows)):
            out = [view for of_kind in views for view in of_kind[i]]
            try:
                colours += self._views(int(task.rows[i]), found, int(instances[i]), int(task.passes[i]), out)
            except Unreadable as error:
                bad.append(Bad(int(task.rows[i]), error.cause, str(error)))
                instances[i], made = self._of_a_spare(task, i, out, bad)
                colours += made
        later = self._by_kind(colours) if self.colours_on_device else None
        read_seconds, seconds = self.decoder.read_seconds - read_before, time.perf_counter() - begun
        return Made(instances, bad, read_seconds, seconds, later)

    def _by_kind(self, colours: Sequence[Colours]) -> tuple[Tensor, ...]:
        """Parameters of the views, image by image, as [views of the kind, NUM_COLUMNS] for each kind."""
        of_images = torch.from_numpy(colours_as_array(colours)).unflatten(0, (-1, len(self._kinds)))
        return tuple(of_kind.flatten(0, 1) for of_kind in of_images.split([kind.number for kind in self.spec.view_kinds], 1))

    def _views(
        self, row: int, found: bytes | np.ndarray | Unreadable, instance: int, epoch: int, out: Sequence[np.ndarray]
    ) -> list[Colours]:
        """Write an image's views into `out`, each [S, S, C]; returns what is yet to be done to their colours. Raises Unreadable."""
        spec, size, channels = self.spec.augmentation, self.spec.data.image_size, self.spec.data.channels
        draws = self._draws_of(epoch, instance, len(out))
        shape = upright_shape(found) if channels == 3 and isinstance(found, bytes) else None
        cuts: list[Geometry] = []
        reduce = 1
        if shape is not None and min(shape) >= 2 * size:
            cuts = self._cuts(shape, draws)
            reduce = max(part for part in (1, 2, 4, 8) if self._shrinks(cuts, part) or part == 1)
        image = self.decoder.pixels(row, found, reduce)
        if cuts and shape is not None and image.shape[:2] != tuple(-(-side // reduce) for side in shape):
            # The decoder turned what its header does not say to turn, or the header lies.
            draws = self._draws_of(epoch, instance, len(out))
            cuts, reduce, image = [], 1, self.decoder.pixels(row, found)
        if not cuts:
            cuts = self._cuts(image.shape[:2], draws)
        elif reduce > 1:
            cuts = [_scaled(cut, reduce, image) for cut in cuts]
        colours = []
        for view, (cut, of_view) in enumerate(zip(cuts, draws, strict=True)):
            cropped, drawn = apply_geometry(image, cut, len(out[view])), draw_colours(spec, of_view, channels)
            out[view][:] = cropped if self.colours_on_device else apply_colours(cropped, drawn)
            colours.append(drawn)
        return colours

    def _cuts(self, shape: tuple[int, ...], draws: Sequence[Iterator[float]]) -> list[Geometry]:
        """Where each view is cut out of an image of this height and width."""
        height, width = shape
        return [
            draw_geometry(self.spec.augmentation, height, width, of_view, kind.crop_scale)
            for kind, of_view in zip(self._kinds, draws, strict=True)
        ]

    def _shrinks(self, cuts: Sequence[Geometry], part: int) -> bool:
        """Whether all views are shrunk at least so many times."""
        return all(min(cut.height, cut.width) >= part * kind.size for kind, cut in zip(self._kinds, cuts, strict=True))

    def _draws_of(self, epoch: int, instance: int, num_views: int) -> list[Iterator[float]]:
        if self._draws is None:
            self._draws = ViewDraws()
        return [self._draws(self.spec.seed, epoch, instance, view) for view in range(num_views)]

    def _of_a_spare(self, task: Task, i: int, out: Sequence[np.ndarray], bad: list[Bad]) -> tuple[int, list[Colours]]:
        """Views of the first of the spare images that can be read, and its instance; of a grey one of the image's own where none can."""
        assert task.passes is not None
        assert task.spare_rows is not None
        assert task.spare_instances is not None
        for instance, row in zip(task.spare_instances[i].tolist(), task.spare_rows[i].tolist(), strict=True):
            try:
                return instance, self._views(row, next(iter(self.decoder.encoded([row]))), instance, int(task.passes[i]), out)
            except Unreadable as error:
                bad.append(Bad(row, error.cause, str(error)))
        for view in out:
            view[:] = 128
        return int(task.instances[i]), [Colours()] * len(out)


class EvaluationViews(MadeInMemory):
    """Evaluation views of a task's images."""

    def __init__(self, index: Index, spec: RunSpec, size: int) -> None:
        self.spec, self.size = spec, size
        self.decoder = Decoder(index, spec)

    def shapes(self, n: int) -> list[tuple[int, ...]]:
        return [(n, 1, self.size, self.size, self.spec.data.channels)]

    def __getitem__(self, task: Task) -> Made:
        begun, bad = time.perf_counter(), []
        (views,) = self.memory.arrays(task.slot, self.shapes(len(task.rows)))
        for i, found in enumerate(self.decoder.encoded(task.rows)):
            try:
                views[i] = evaluation_view(self.decoder.pixels(int(task.rows[i]), found), self.size)
            except Unreadable as error:
                views[i] = 128
                bad.append(Bad(int(task.rows[i]), error.cause, str(error)))
        return Made(task.instances, bad, self.decoder.read_seconds, time.perf_counter() - begun)


def _scaled(cut: Geometry, reduce: int, image: np.ndarray) -> Geometry:
    """The same part of the image that was decoded at a part of its size."""
    height, width = round(cut.height / reduce), round(cut.width / reduce)
    top, left = min(round(cut.top / reduce), image.shape[0] - height), min(round(cut.left / reduce), image.shape[1] - width)
    return Geometry(top, left, height, width, cut.flips_left_right, cut.flips_upside_down)


def _pinned(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.pin_memory() for tensor in tensors)
