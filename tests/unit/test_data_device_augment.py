"""Colours of a batch at once. Oracles: the same of one view after another with OpenCV, and torchvision's functions on floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from service.data_sections import Augmentation
from tests.images import noise
from trainer.data import device_augment
from trainer.data.augment import Colours, apply_colours, colours_as_array, draw_colours, view_draws, view_rng
from trainer.data.device_augment import apply
from trainer.torchvision_shim import import_timm

EVERYTHING = Augmentation(solarize=0.3)
SIZE = 40


def vivid(seed: int, channels: int = 3) -> np.ndarray:
    """[SIZE, SIZE, channels] uint8: strong colours, both ends of the scale, flat parts."""
    rng = np.random.default_rng(seed)
    blurred = cv2.GaussianBlur(rng.normal(0, 1, (SIZE, SIZE, channels)), (0, 0), 2).reshape(SIZE, SIZE, channels)
    return np.clip(blurred * 500 + 128, 0, 255).astype(np.uint8)


def as_tensor(views: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)


def pixels(views: Sequence[np.ndarray] | Tensor, colours: Sequence[Colours], spec: Augmentation = EVERYTHING) -> np.ndarray:
    """[b, S, S, C] float32, what `apply` makes, before normalisation."""
    images = views if isinstance(views, Tensor) else as_tensor(views)
    channels = images.shape[1]
    changed = apply(images, torch.from_numpy(colours_as_array(colours)), spec, (0.0,) * channels, (1 / 255,) * channels)
    return changed.permute(0, 2, 3, 1).numpy()


def drawn(number: int, spec: Augmentation = EVERYTHING, channels: int = 3) -> list[Colours]:
    return [draw_colours(spec, view_draws(view_rng(0, 0, i, 0)), channels) for i in range(number)]


def test_parameters_of_a_batch_name_each_blend_in_its_order() -> None:
    """Before or after the hue; what changes nothing takes no slot; a turn that 8 bits round to none is a whole one."""
    colours = [
        Colours(),
        Colours(1.25, 0.5, 1.5, -0.25, order=(2, 3, 1, 0), grayscale=True, blur_sigma=0.75, solarize=True),
        Colours(1.25, 1.0, 1.5, 0.0, order=(2, 3, 1, 0)),
        Colours(hue=0.001),
    ]
    nothing = [1, 0, 0]
    assert colours_as_array(colours).tolist() == [
        [*nothing * 6, 0, 0, 0, 0],
        [1.5, 0, 1, *nothing * 2, 0.5, 1, 0, 1.25, 0, 0, *nothing, -64, 1, 0.75, 1],
        [1.5, 0, 1, 1.25, 0, 0, *nothing * 4, 0, 0, 0, 0],
        [*nothing * 6, 256, 0, 0, 0],
    ]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_a_batch_is_changed_as_its_views_are_one_by_one(channels: int) -> None:
    """99 of 100 values to within 2 of 255, and no view by much; OpenCV rounds to 8 bits after each step."""
    spec = EVERYTHING.model_copy(update={"brightness": 0.8, "hue": 0.5})
    views, colours = [vivid(i, channels) for i in range(120)], drawn(120, spec, channels)
    one_by_one = np.stack([apply_colours(view, one) for view, one in zip(views, colours, strict=True)]).astype(float)
    difference = np.abs(pixels(views, colours, spec) - one_by_one)
    assert (difference <= 2).mean() > 0.99
    assert difference.mean((1, 2, 3)).max() < 2


def brightness_contrast_saturation(functional: Any, x: Tensor) -> Tensor:
    return functional.adjust_saturation(functional.adjust_contrast(functional.adjust_brightness(x, 1.4), 0.5), 1.3)


def contrast_saturation_brightness(functional: Any, x: Tensor) -> Tensor:
    return functional.adjust_brightness(functional.adjust_saturation(functional.adjust_contrast(x, 0.5), 1.3), 1.4)


@pytest.mark.parametrize(
    ("colours", "change"),
    [
        (Colours(brightness=1.4), lambda f, x: f.adjust_brightness(x, 1.4)),
        (Colours(contrast=0.6), lambda f, x: f.adjust_contrast(x, 0.6)),
        (Colours(contrast=1.4), lambda f, x: f.adjust_contrast(x, 1.4)),
        (Colours(saturation=1.4), lambda f, x: f.adjust_saturation(x, 1.4)),
        (Colours(grayscale=True), lambda f, x: f.rgb_to_grayscale(x, 3)),
        (Colours(solarize=True), lambda f, x: f.solarize(x, 127.5 / 255)),
        (Colours(blur_sigma=2.0), lambda f, x: f.gaussian_blur(x, [13, 13], [2.0, 2.0])),
        (Colours(blur_sigma=0.7), lambda f, x: f.gaussian_blur(x, [5, 5], [0.7, 0.7])),
        (
            Colours(1.4, 0.5, 1.3, order=(0, 3, 1, 2)),
            lambda f, x: f.adjust_saturation(f.adjust_contrast(f.adjust_brightness(x, 1.4), 0.5), 1.3),
        ),
        (
            Colours(1.4, 0.5, 1.3, order=(1, 2, 0, 3)),
            lambda f, x: f.adjust_brightness(f.adjust_saturation(f.adjust_contrast(x, 0.5), 1.3), 1.4),
        ),
    ],
)
def test_each_change_is_torchvisions(colours: Colours, change: Callable[[Any, Tensor], Tensor]) -> None:
    """On floats, to within a quarter of a grey level: our luma has the weights of OpenCV, torchvision's has four digits."""
    import_timm()  # makes torchvision importable
    from torchvision.transforms.v2 import functional

    views = as_tensor([vivid(0), noise(1, SIZE, SIZE)])
    theirs = change(functional, views.float() / 255).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(pixels(views, [colours] * 2) - theirs).max() < 0.25


@pytest.mark.parametrize("turn", [-0.5, -0.1015625, 0.0625, 0.3984375])
def test_the_hue_turns_as_torchvisions_does_to_within_its_8_bits(turn: float) -> None:
    """A 256th of the circle is 6 of 255 on a full colour; half of that by rounding, one more by the stretch of OpenCV's hue."""
    import_timm()
    from torchvision.transforms.v2 import functional

    views = as_tensor([vivid(2), noise(3, SIZE, SIZE)])
    theirs = functional.adjust_hue(views.float() / 255, turn).permute(0, 2, 3, 1).numpy() * 255
    difference = np.abs(pixels(views, [Colours(hue=turn)] * 2) - theirs)
    assert difference.max() < 9.5
    assert difference.mean() < 1.2


def test_a_turn_to_and_fro_keeps_value_and_chroma() -> None:
    """The hue alone changes: the largest and the least of the three channels stay."""
    view = vivid(4)
    turned = pixels([view], [Colours(hue=0.3)])[0]
    assert np.abs(turned.max(2) - view.max(2)).max() < 1e-3
    assert np.abs(turned.min(2) - view.min(2)).max() < 1e-3


def test_parameters_that_change_nothing_change_nothing() -> None:
    """Every step is done all the same; the way to the hue and back costs the last bits of a float."""
    views = [vivid(5), noise(6, SIZE, SIZE), np.full((SIZE, SIZE, 3), 255, np.uint8), np.zeros((SIZE, SIZE, 3), np.uint8)]
    assert np.abs(pixels(views, [Colours()] * 4) - np.stack(views)).max() < 1e-3
    without_hue = EVERYTHING.model_copy(update={"hue": 0.0})
    assert np.array_equal(pixels(views, [Colours()] * 4, without_hue), np.stack(views))


def test_a_view_depends_neither_on_its_neighbours_nor_on_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits again; in parts of two views, and alone, the same numbers."""
    views, colours = [vivid(i) for i in range(7)], drawn(7)
    first = pixels(views, colours)
    assert np.array_equal(pixels(views, colours), first)
    for i in range(7):
        assert np.abs(pixels(views[i : i + 1], colours[i : i + 1]) - first[i]).max() < 1e-3
    monkeypatch.setattr(device_augment, "_PART_NUMBERS", 2 * views[0].size)
    assert np.abs(pixels(views, colours) - first).max() < 1e-3


def test_it_is_normalised_and_channels_last_in_the_asked_precision() -> None:
    """(x / 255 - mean) / std per channel, whatever the memory layout of the crops."""
    mean, std, spec = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), Augmentation(jitter=0.0, grayscale=0.0, blur=0.0)
    views = as_tensor([vivid(7), vivid(8)])
    params = torch.from_numpy(colours_as_array([Colours()] * 2))
    oracle = (views.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        for crops in (views, views.contiguous()):
            normalised = apply(crops, params, spec, mean, std, dtype)
            assert normalised.dtype == dtype
            assert normalised.is_contiguous(memory_format=torch.channels_last)
            assert (normalised.double() - oracle).abs().max() < tolerance


class Count(TorchDispatchMode):
    """How many operations reach the device."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def test_the_host_neither_waits_for_the_device_nor_goes_through_the_views() -> None:
    """A meta tensor has no values: to ask for one fails. And the number of operations is that of two views."""
    counts = []
    for b in (2, 64):
        images = torch.empty((b, 3, SIZE, SIZE), dtype=torch.uint8, device="meta")
        params = torch.empty((b, 22), device="meta")
        arguments = EVERYTHING, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), torch.float16
        apply(images, params, *arguments)  # makes what is kept from call to call
        with Count() as count:
            assert apply(images, params, *arguments).shape == images.shape
        counts.append(count.number)
    assert counts[0] == counts[1]


def test_what_the_specification_never_does_costs_nothing() -> None:
    """Each part that is off takes operations away."""
    images, params = as_tensor([vivid(9)]), torch.from_numpy(colours_as_array([Colours()]))
    arguments = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    apply(images, params, EVERYTHING, *arguments)  # makes what is kept from call to call
    numbers = []
    for off in ({}, {"solarize": 0.0}, {"blur": 0.0}, {"grayscale": 0.0}, {"hue": 0.0}, {"saturation": 0.0}, {"jitter": 0.0}):
        spec = EVERYTHING.model_copy(update=off)
        with Count() as count:
            apply(images, params, spec, *arguments)
        numbers.append(count.number)
    assert max(numbers[1:]) < numbers[0]
    assert min(numbers) == numbers[-1]


def test_a_blur_wider_than_the_view_leaves_a_plain_view_plain() -> None:
    """The weights sum to 1 whatever the sigma, mirrored edges included."""
    spec = EVERYTHING.model_copy(update={"blur_sigma": (0.1, 60.0)})
    plain = np.full((SIZE, SIZE, 3), 77, np.uint8)
    blurred = pixels([plain] * 4, [Colours(blur_sigma=sigma) for sigma in (0.0, 0.1, 5.0, 60.0)], spec)
    assert np.abs(blurred - 77).max() < 1e-3
