"""One view of one image, with OpenCV on uint8 arrays: four to eight times as fast as Pillow or torchvision on a CPU.

The MoCo v2 family (paper: "random crop, colour jitter, Gaussian blur"): crop and resize, flips, colour jitter in a random
order, greyscale, blur. Images are [H, W, 3] uint8, red green blue.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np

from service.sections import Augmentation

_CROP_TRIES = 10


def view_rng(seed: int, epoch: int, instance: int, view: int) -> np.random.Generator:
    """The view's own random numbers. They follow from these four alone, so that a view is the same in whichever process, on
    whichever rank and after whichever resume it is made. Seed and epoch under 2**32, view under 2**8."""
    key = (seed << 32 | epoch) << 64 | instance << 8 | view
    return np.random.Generator(np.random.Philox(key=key))


def augment(image: np.ndarray, spec: Augmentation, size: int, rng: np.random.Generator) -> np.ndarray:
    """A view of `image`, [size, size, 3] uint8."""
    draws = iter(rng.random(2 * _CROP_TRIES + 16).tolist())  # one call: a call for each number would cost more than the pixels
    view = _resize(_random_crop(image, spec, draws), size, size, cv2.INTER_LINEAR)
    if next(draws) < spec.horizontal_flip:
        view = cv2.flip(view, 1)
    if next(draws) < spec.vertical_flip:
        view = cv2.flip(view, 0)
    if next(draws) < spec.jitter:
        view = _jitter(view, spec, draws)
    if next(draws) < spec.grayscale:
        view = _gray(view)
    if next(draws) < spec.blur:
        view = cv2.GaussianBlur(view, (0, 0), _between(*spec.blur_sigma, next(draws)))
    return view


def evaluation_view(image: np.ndarray, size: int) -> np.ndarray:
    """The shorter side brought to `size` (area interpolation to shrink, bicubic to enlarge), then the centre; [size, size, 3]."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    resized = _resize(image, width, height, cv2.INTER_CUBIC)
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(resized[top : top + size, left : left + size])


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _resize(image: np.ndarray, width: int, height: int, enlarging: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    shrinks = width < image.shape[1] and height < image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else enlarging)


def _random_crop(image: np.ndarray, spec: Augmentation, draws: Iterator[float]) -> np.ndarray:
    """Inception's crop: an area and a log-uniform aspect ratio until one fits, else the middle at the nearest allowed ratio."""
    height, width = image.shape[:2]
    log_ratio = math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])
    for _ in range(_CROP_TRIES):
        area = height * width * _between(*spec.crop_scale, next(draws))
        ratio = math.exp(_between(*log_ratio, next(draws)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            break
    else:
        ratio = min(max(width / height, spec.crop_ratio[0]), spec.crop_ratio[1])
        crop_width, crop_height = max(1, min(width, round(height * ratio))), max(1, min(height, round(width / ratio)))
    top, left = int(next(draws) * (height - crop_height + 1)), int(next(draws) * (width - crop_width + 1))
    return image[top : top + crop_height, left : left + crop_width]


def _jitter(view: np.ndarray, spec: Augmentation, draws: Iterator[float]) -> np.ndarray:
    changes = (
        (_brightness, 1 + _between(-spec.brightness, spec.brightness, next(draws))),
        (_contrast, 1 + _between(-spec.contrast, spec.contrast, next(draws))),
        (_saturation, 1 + _between(-spec.saturation, spec.saturation, next(draws))),
        (_hue, _between(-spec.hue, spec.hue, next(draws))),
    )
    order = [next(draws) for _ in changes]
    for i in sorted(range(len(changes)), key=order.__getitem__):
        change, amount = changes[i]
        view = change(view, amount)
    return view


def _brightness(view: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(view, factor, view, 0, 0)


def _contrast(view: np.ndarray, factor: float) -> np.ndarray:
    red, green, blue, _ = cv2.mean(view)
    mean = 0.299 * red + 0.587 * green + 0.114 * blue
    return cv2.addWeighted(view, factor, view, 0, (1 - factor) * mean)


def _saturation(view: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(view, factor, _gray(view), 1 - factor, 0)


def _hue(view: np.ndarray, turn: float) -> np.ndarray:
    if turn == 0:  # the way through HSV and back rounds
        return view
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)  # _FULL: the hue's 8 bits are the whole circle, so that it wraps by itself
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _gray(view: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
