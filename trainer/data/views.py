"""What a loader process makes: augmented views, and views for evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from service.spec import RunSpec
from trainer.data.augment import (
    NUM_COLUMNS,
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
from trainer.data.decode import Unreadable
from trainer.data.decoder import Decoder
from trainer.data.headers import upright_shape
from trainer.data.index import Index
from trainer.data.tasks import Bad, Made, MadeInMemory, Task

_UNCHANGED = Colours()


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
        drawn = self._by_kind(colours) if self.colours_on_device else None
        read_seconds, seconds = self.decoder.read_seconds - read_before, time.perf_counter() - begun
        return Made(instances, bad, read_seconds, seconds, drawn)

    def _by_kind(self, colours: Sequence[Colours]) -> tuple[np.ndarray, ...]:
        """Parameters of the views, image by image, as [views of the kind, NUM_COLUMNS] for each kind."""
        of_images = colours_as_array(colours).reshape(-1, len(self._kinds), NUM_COLUMNS)
        ends = np.cumsum([kind.number for kind in self.spec.view_kinds])[:-1]
        return tuple(of_kind.reshape(-1, NUM_COLUMNS) for of_kind in np.split(of_images, ends, 1))

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
            drawn = draw_colours(spec, of_view, channels)
            cropped = apply_geometry(image, cut, len(out[view]), out[view])
            if not self.colours_on_device and drawn != _UNCHANGED:
                out[view][:] = apply_colours(cropped, drawn)
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
