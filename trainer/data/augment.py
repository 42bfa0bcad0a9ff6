"""One view of one image, with OpenCV on uint8 arrays: four to eight times as fast as Pillow or torchvision on a CPU.

The MoCo v2 family (paper: "random crop, colour jitter, Gaussian blur"): crop and resize, flips, colour jitter in a random
order, greyscale, blur, and BYOL's solarisation. Images are [H, W, C] uint8; three channels are red green blue, and of another number
each is changed alike: hue, saturation and greyscale are then left out.

    draws = view_draws(view_rng(seed, epoch, instance, view))
    view = geometry(image, spec, size, draws)
    colours = draw_colours(spec, draws, channels)
    apply_colours(view, colours)           here, or
    colours_as_array([colours, ...])       for device_augment.py, which does the same to a batch
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from service.data_sections import Augmentation

_CROP_TRIES = 10
_NUM_DRAWS = 2 * _CROP_TRIES + 17
_LONGEST = 8
"""Times its shorter side that an image is looked at in its length for evaluation, before its centre is cut out."""
_FLIPS = {(False, False): None, (True, False): 1, (False, True): 0, (True, True): -1}
"""OpenCV's numbers, by left-right and upside-down."""
_AREA_CHANNELS = 4
"""OpenCV's area interpolation takes no more at a time."""

SLOTS_BEFORE_HUE = (0, 3, 6)
"""First columns of the slots of three numbers in `colours_as_array`."""
SLOTS_AFTER_HUE = (9, 12, 15)
HUE, GRAYSCALE, BLUR_SIGMA, SOLARIZE, NUM_COLUMNS = 18, 19, 20, 21, 22


@dataclass(frozen=True)
class Geometry:
    """Where a view is cut, in pixels of the image, and how it is flipped."""

    top: int
    left: int
    height: int
    width: int
    flips_left_right: bool
    flips_upside_down: bool


@dataclass(frozen=True)
class Colours:
    """All that happens to the colours of one view. The defaults change nothing."""

    brightness: float = 1.0
    """Factor."""
    contrast: float = 1.0
    """Factor of the distance from the view's mean luma."""
    saturation: float = 1.0
    """Factor of the distance from each pixel's luma."""
    hue: float = 0.0
    """Turn, as a fraction of the circle, -0.5 to 0.5."""
    order: tuple[int, ...] = (0, 1, 2, 3)
    """In which the four are done, by their position above."""
    grayscale: bool = False
    blur_sigma: float = 0.0
    """Pixels; 0: no blur."""
    solarize: bool = False

    @property
    def jitters(self) -> bool:
        return (self.brightness, self.contrast, self.saturation, self.hue) != (1.0, 1.0, 1.0, 0.0)


def view_rng(seed: int, epoch: int, instance: int, view: int) -> np.random.Generator:
    """The view's own random numbers. They follow from these four alone, so that a view is the same in whichever process, on
    whichever rank and after whichever resume it is made. Seed and epoch under 2**32, view under 2**8."""
    key = (seed << 32 | epoch) << 64 | instance << 8 | view
    return np.random.Generator(np.random.Philox(key=key))


def view_draws(rng: np.random.Generator) -> Iterator[float]:
    """As many numbers in [0, 1) as a view can need."""
    return iter(rng.random(_NUM_DRAWS).tolist())  # one call: a call for each number would cost more than the pixels


class ViewDraws:
    """view_draws(view_rng(...)) again and again, in a fifth of the time: one generator, set anew for each view. For one thread."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)
        self._state: Any = self._philox.state
        self._generator = np.random.Generator(self._philox)

    def __call__(self, seed: int, epoch: int, instance: int, view: int) -> Iterator[float]:
        inner = self._state["state"]
        inner["key"][:] = instance << 8 | view, seed << 32 | epoch
        inner["counter"][:] = 0
        self._state["buffer_pos"] = 4  # an empty buffer
        self._philox.state = self._state
        return iter(self._generator.random(_NUM_DRAWS).tolist())


def augment(image: np.ndarray, spec: Augmentation, size: int, rng: np.random.Generator) -> np.ndarray:
    """A view of `image` [H, W, C]: [size, size, C] uint8."""
    draws = view_draws(rng)
    view = geometry(image, spec, size, draws)
    return apply_colours(view, draw_colours(spec, draws, view.shape[2]))


def geometry(image: np.ndarray, spec: Augmentation, size: int, draws: Iterator[float]) -> np.ndarray:
    """The crop, resized and flipped: [size, size, C] uint8. May share the image's memory."""
    return apply_geometry(image, draw_geometry(spec, image.shape[0], image.shape[1], draws), size)


def draw_geometry(
    spec: Augmentation, height: int, width: int, draws: Iterator[float], crop_scale: tuple[float, float] | None = None
) -> Geometry:
    """Inception's crop: an area and a log-uniform aspect ratio until one fits, else the middle at the nearest allowed ratio.

    `crop_scale`: in the place of the specification's, for views of another size."""
    least, most = crop_scale or spec.crop_scale
    log_ratio = math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])
    for _ in range(_CROP_TRIES):
        area = height * width * _between(least, most, next(draws))
        ratio = math.exp(_between(*log_ratio, next(draws)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            break
    else:
        ratio = min(max(width / height, spec.crop_ratio[0]), spec.crop_ratio[1])
        crop_width, crop_height = max(1, min(width, round(height * ratio))), max(1, min(height, round(width / ratio)))
    top, left = int(next(draws) * (height - crop_height + 1)), int(next(draws) * (width - crop_width + 1))
    return Geometry(top, left, crop_height, crop_width, next(draws) < spec.horizontal_flip, next(draws) < spec.vertical_flip)


def apply_geometry(image: np.ndarray, cut: Geometry, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """[size, size, C] uint8, in `out` if it is given, else it may share the image's memory."""
    cropped = image[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    # Up to half its size, linear interpolation skips no pixel: a third of the time of averaging over areas.
    shrinks_little = cut.height <= 2 * size and cut.width <= 2 * size
    flip = _FLIPS[cut.flips_left_right, cut.flips_upside_down]
    into = out if flip is None else None
    view = _resize(cropped, size, size, cv2.INTER_LINEAR, cv2.INTER_LINEAR if shrinks_little else cv2.INTER_AREA, into)
    if flip is not None:
        view = _like(cv2.flip(view, flip, dst=out), view)
    if out is not None and view is not out:
        out[:] = view
    return view


def draw_colours(spec: Augmentation, draws: Iterator[float], channels: int = 3) -> Colours:
    """All random parameters of one view after its geometry; without hue, saturation and greyscale unless there are three channels."""
    amounts, order = (1.0, 1.0, 1.0, 0.0), (0, 1, 2, 3)
    if next(draws) < spec.jitter:
        brightness, contrast, saturation, hue = (
            _between(-most, most, next(draws)) for most in (spec.brightness, spec.contrast, spec.saturation, spec.hue)
        )
        amounts = 1 + brightness, 1 + contrast, 1 + saturation, hue
        ranks = [next(draws) for _ in amounts]
        order = tuple(sorted(range(len(amounts)), key=ranks.__getitem__))
    grayscale = next(draws) < spec.grayscale
    sigma = _between(*spec.blur_sigma, next(draws)) if next(draws) < spec.blur else 0.0
    solarize = next(draws) < spec.solarize
    if channels != 3:
        return Colours(amounts[0], amounts[1], order=order, blur_sigma=sigma, solarize=solarize)
    return Colours(*amounts, order, grayscale, sigma, solarize)


def apply_colours(view: np.ndarray, colours: Colours) -> np.ndarray:
    """[H, W, C] uint8, as `view`, which stays as it is. Each step is rounded to 8 bits."""
    amounts = colours.brightness, colours.contrast, colours.saturation, colours.hue
    if colours.jitters:
        for i in colours.order:
            if amounts[i] != _CHANGES_NOTHING[i]:
                view = _like(_CHANGES[i](view, amounts[i]), view)
    if colours.grayscale:
        view = _gray(view)
    if colours.blur_sigma:
        view = _like(cv2.GaussianBlur(view, (0, 0), colours.blur_sigma), view)
    if colours.solarize:
        view = np.minimum(view, 255 - view)  # 255 - x where x >= 128
    return view


def colours_as_array(colours: Sequence[Colours]) -> np.ndarray:
    """[b, NUM_COLUMNS] float32: the parameters of a batch's views, laid out for device_augment.py, which knows no order.

    Brightness, contrast and saturation are each a blend of the pixels with something of less colour, f x + (1 - f) t, and take slots
    in their order, three before and three after the hue. A slot is f and the shares in t of the mean luma and of the pixel's luma
    (brightness: neither); 1, 0, 0 changes nothing. Then the hue's turn in whole 256ths of the circle, as 8 bits have it, 0 for none and
    256 for one that rounds to none; greyscale 0 or 1; the blur's sigma or 0; solarisation 0 or 1.
    """
    rows = np.zeros((len(colours), NUM_COLUMNS), np.float32)
    rows[:, SLOTS_BEFORE_HUE + SLOTS_AFTER_HUE] = 1
    for row, one in zip(rows, colours, strict=True):
        amounts, slots = (one.brightness, one.contrast, one.saturation), iter(SLOTS_BEFORE_HUE)
        for i in one.order:
            if i == 3:
                slots = iter(SLOTS_AFTER_HUE) if one.hue else slots
            elif amounts[i] != 1:
                at = next(slots)
                row[at : at + 3] = amounts[i], i == 1, i == 2
        hue = round(one.hue * 256) or 256 if one.hue else 0
        row[HUE:] = hue, one.grayscale, one.blur_sigma, one.solarize
    return rows


def evaluation_view(image: np.ndarray, size: int) -> np.ndarray:
    """The shorter side brought to `size` (area interpolation to shrink, bicubic to enlarge), then the centre; [size, size, C]."""
    most = _LONGEST * min(image.shape[:2])
    if max(image.shape[:2]) > most:  # a strip: most of it is cut off, and need not be brought to size first
        top, left = (max(0, (side - most) // 2) for side in image.shape[:2])
        image = image[top : top + most, left : left + most]
    height, width = image.shape[:2]
    scale = size / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    resized = _resize(image, width, height, cv2.INTER_CUBIC)
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(resized[top : top + size, left : left + size])


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _like(changed: np.ndarray, view: np.ndarray) -> np.ndarray:
    """OpenCV drops the axis of a single channel."""
    return changed if changed.ndim == view.ndim else changed[..., None]


def _resize(
    image: np.ndarray, width: int, height: int, enlarging: int, shrinking: int = cv2.INTER_AREA, out: np.ndarray | None = None
) -> np.ndarray:
    """In `out` where that can be had, and is given."""
    if image.shape[:2] == (height, width):
        return image
    if width >= image.shape[1] or height >= image.shape[0]:
        return _like(cv2.resize(image, (width, height), dst=out, interpolation=enlarging), image)
    if image.shape[2] <= _AREA_CHANNELS:
        return _like(cv2.resize(image, (width, height), dst=out, interpolation=shrinking), image)
    parts = np.split(image, range(_AREA_CHANNELS, image.shape[2], _AREA_CHANNELS), axis=2)
    resized = [_like(cv2.resize(part, (width, height), interpolation=shrinking), image) for part in parts]
    return np.concatenate(resized, axis=2)


def _brightness(view: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(view, factor, view, 0, 0)


def _contrast(view: np.ndarray, factor: float) -> np.ndarray:
    if view.shape[2] == 3:
        red, green, blue, _ = cv2.mean(view)
        mean = 0.299 * red + 0.587 * green + 0.114 * blue
    else:
        mean = cv2.mean(np.ascontiguousarray(view).reshape(len(view), -1))[0]
    return cv2.addWeighted(view, factor, view, 0, (1 - factor) * mean)


def _saturation(view: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(view, factor, _gray(view), 1 - factor, 0)


def _hue(view: np.ndarray, turn: float) -> np.ndarray:
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)  # _FULL: the hue's 8 bits are the whole circle, so that it wraps by itself
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _gray(view: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


_CHANGES = (_brightness, _contrast, _saturation, _hue)
_CHANGES_NOTHING = (1.0, 1.0, 1.0, 0.0)
