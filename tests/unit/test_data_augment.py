"""Views of an image. Oracle of the colour changes: torchvision's functions on Pillow images, which MoCo v2 used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from service.data_sections import Augmentation
from tests.images import noise
from trainer.data.augment import (
    ViewDraws,
    apply_colours,
    augment,
    draw_colours,
    draw_geometry,
    evaluation_view,
    geometry,
    view_draws,
    view_rng,
)
from trainer.torchvision_shim import import_timm

NOTHING: dict[str, Any] = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "horizontal_flip": 0.0,
    "jitter": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "grayscale": 0.0,
    "blur": 0.0,
}


def only(**changes: Any) -> Augmentation:
    return Augmentation(**(NOTHING | changes))


def smooth(seed: int) -> np.ndarray:
    """A colourful image of 32 x 32 without single odd pixels."""
    blurred = cv2.GaussianBlur(noise(seed, 32, 32), (0, 0), 2).astype(float)
    return ((blurred - blurred.min()) / np.ptp(blurred) * 200 + 20).astype(np.uint8)


def test_a_view_depends_on_seed_epoch_instance_and_view_and_on_nothing_else() -> None:
    """The same numbers give the same view again; one of them changed gives another."""
    numbers = {"seed": 5, "epoch": 3, "instance": 70_000, "view": 1}
    first = augment(smooth(0), Augmentation(), 32, view_rng(**numbers))
    assert np.array_equal(first, augment(smooth(0), Augmentation(), 32, view_rng(**numbers)))
    for name in numbers:
        other = augment(smooth(0), Augmentation(), 32, view_rng(**(numbers | {name: numbers[name] + 1})))
        assert not np.array_equal(first, other), name
    swapped = view_rng(**(numbers | {"seed": 3, "epoch": 5}))
    assert not np.array_equal(first, augment(smooth(0), Augmentation(), 32, swapped))


@pytest.mark.parametrize("shape", [(32, 32), (500, 333), (7, 90), (1, 1)])
def test_a_view_is_square_whatever_the_image_and_leaves_the_image_as_it_was(shape: tuple[int, int]) -> None:
    """Photographs, strips and single pixels alike; the image may be a cached one."""
    image = noise(1, *shape)
    before = image.copy()
    for i in range(20):
        view = augment(image, Augmentation(vertical_flip=0.5), 24, view_rng(0, 0, i, 0))
        assert view.shape == (24, 24, 3)
        assert view.dtype == np.uint8
    assert np.array_equal(image, before)


def test_with_everything_off_the_view_is_the_image() -> None:
    """Nothing is done that was not asked for."""
    assert np.array_equal(augment(noise(2), only(), 24, view_rng(0, 0, 0, 0)), noise(2))
    assert np.array_equal(augment(noise(2), only(horizontal_flip=1.0), 24, view_rng(0, 0, 0, 0)), noise(2)[:, ::-1])
    assert np.array_equal(augment(noise(2), only(vertical_flip=1.0), 24, view_rng(0, 0, 0, 0)), noise(2)[::-1])


def test_crops_keep_to_the_area_and_the_ratio_and_reach_every_corner() -> None:
    """An image whose red is x and whose green is y shows in each view where it was cut."""
    y, x = np.mgrid[0:200, 0:200].astype(np.uint8)
    image = np.dstack([x, y, np.zeros_like(x)])
    spec = only(crop_scale=(0.2, 0.8), crop_ratio=(0.5, 2.0))
    areas, ratios, lefts, rights = [], [], [], []
    for i in range(400):
        view = augment(image, spec, 200, view_rng(0, 0, i, 0)).astype(int)
        width, height = np.ptp(view[..., 0]) + 1, np.ptp(view[..., 1]) + 1
        areas.append(width * height / 200**2)
        ratios.append(width / height)
        lefts.append(view[..., 0].min())
        rights.append(view[..., 0].max())
    assert 0.19 < min(areas) < 0.25
    assert 0.7 < max(areas) < 0.82
    assert 0.49 < min(ratios) < 0.6
    assert 1.7 < max(ratios) < 2.05
    assert abs(np.mean(np.log(ratios))) < 0.06
    assert min(lefts) == 0
    assert max(rights) == 199


def test_an_image_too_narrow_for_any_crop_gives_its_middle_at_the_nearest_ratio() -> None:
    """As torchvision: a strip of 10 x 1000 under ratio 1 is cut to 10 x 10."""
    image = noise(3, 10, 1000)
    assert augment(image, only(), 10, view_rng(0, 0, 0, 0)).shape == (10, 10, 3)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_changes_as_torchvision_does_by_a_factor_within_its_bounds(name: str) -> None:
    """Each view equals torchvision's for some factor from 1 - x to 1 + x, to within 2 of 255."""
    import_timm()  # makes torchvision importable
    from torchvision.transforms import functional

    change: Callable[..., Image.Image] = getattr(functional, f"adjust_{name}")
    image = smooth(4)
    candidates = [(f, np.asarray(change(Image.fromarray(image), f)).astype(int)) for f in np.linspace(0.4, 1.6, 241)]
    found = []
    for i in range(60):
        view = augment(image, only(jitter=1.0, **{name: 0.4}), 32, view_rng(0, 0, i, 0))
        difference, factor = min((int(np.abs(view - candidate).max()), f) for f, candidate in candidates)
        assert difference <= 2
        found.append(factor)
    assert 0.59 <= min(found) < 0.7
    assert 1.3 < max(found) <= 1.41


def test_hue_is_turned_as_torchvision_does() -> None:
    """To within the rounding of an 8-bit hue, by turns from -x to x."""
    import_timm()
    from torchvision.transforms import functional

    image = smooth(5)
    candidates = [(t, np.asarray(functional.adjust_hue(Image.fromarray(image), t)).astype(int)) for t in np.linspace(-0.2, 0.2, 103)]
    found = []
    for i in range(60):
        view = augment(image, only(jitter=1.0, hue=0.1), 32, view_rng(0, 0, i, 0))
        difference, turn = min((float(np.abs(view - candidate).mean()), t) for t, candidate in candidates)
        assert difference < 2.5
        found.append(turn)
    assert -0.11 < min(found) < -0.07
    assert 0.07 < max(found) < 0.11


def test_the_four_jitters_come_in_the_order_that_is_drawn() -> None:
    """Contrast at factor 0 leaves one grey: of the doubled, hence clipped, image or, coming first, twice the image's own."""
    spec = only(jitter=1.0, brightness=1.0, contrast=1.0)
    double_brightness, no_contrast, unused = 1.0, 0.0, 0.5
    factors = [double_brightness, no_contrast, unused, unused]
    brightness_first, contrast_first = (
        apply_colours(smooth(6), draw_colours(spec, iter([unused, *factors, *ranks, unused, unused, unused])))
        for ranks in ([0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.3, 0.4])
    )
    doubled = np.minimum(2 * smooth(6).astype(int), 255)
    luma = np.array([0.299, 0.587, 0.114])
    assert np.abs(brightness_first - (doubled @ luma).mean()).max() <= 1
    assert np.abs(contrast_first - min(2 * (smooth(6) @ luma).mean(), 255)).max() <= 2
    assert abs(int(brightness_first.max()) - int(contrast_first.max())) > 5


def test_grayscale_gives_three_equal_channels() -> None:
    """Oracle: Pillow's luma."""
    view = augment(smooth(7), only(grayscale=1.0), 32, view_rng(0, 0, 0, 0))
    luma = np.asarray(Image.fromarray(smooth(7)).convert("L")).astype(int)
    assert np.abs(view - luma[..., None]).max() <= 1


def test_blur_has_the_asked_standard_deviation() -> None:
    """A white line becomes a Gaussian: its second moment is sigma squared."""
    image = np.zeros((65, 65, 3), np.uint8)
    image[:, 32] = 255
    view = augment(image, only(blur=1.0, blur_sigma=(2.0, 2.0)), 65, view_rng(0, 0, 0, 0))[32, :, 0].astype(float)
    assert (view * (np.arange(65) - 32) ** 2).sum() / view.sum() == pytest.approx(4.0, rel=0.1)


def test_solarisation_inverts_the_bright_values_and_leaves_all_else_as_it_was_drawn() -> None:
    """Oracle: Pillow, with the view that the same seed gives without."""
    for i in range(20):
        without = augment(smooth(11), Augmentation(), 32, view_rng(0, 0, i, 0))
        solarized = augment(smooth(11), Augmentation(solarize=1.0), 32, view_rng(0, 0, i, 0))
        assert np.array_equal(solarized, np.asarray(ImageOps.solarize(Image.fromarray(without), 128)))
        assert np.array_equal(augment(smooth(11), Augmentation(solarize=0.0), 32, view_rng(0, 0, i, 0)), without)


@pytest.mark.parametrize("channels", [2, 4, 6, 64])
def test_channels_that_are_no_colours_are_all_changed_alike(channels: int) -> None:
    """Equal channels stay equal, and as a single channel's view; none is taken for red, green or blue. Sizes both shrink and grow."""
    spec = Augmentation(vertical_flip=0.5, solarize=0.3, brightness=0.8, contrast=0.8)
    for i in range(30):
        image = noise(i, 60, 90)[..., :1]
        size = (24, 80)[i % 2]
        alone = augment(image, spec, size, view_rng(0, 0, i, 0))
        together = augment(np.repeat(image, channels, axis=2), spec, size, view_rng(0, 0, i, 0))
        assert alone.shape == (size, size, 1)
        assert together.shape == (size, size, channels)
        assert np.array_equal(together, np.repeat(alone, channels, axis=2))
    assert evaluation_view(np.repeat(image, channels, axis=2), 20).shape == (20, 20, channels)


def test_each_of_six_channels_keeps_its_place() -> None:
    """Oracle: the same crop of each channel alone, with colours off."""
    image = np.dstack([noise(12, 60, 90), noise(13, 60, 90)])
    spec = Augmentation(jitter=0.0, blur=0.0)
    for size in (24, 80):
        view = augment(image, spec, size, view_rng(0, 0, 0, 0))
        alone = [augment(image[..., i : i + 1], spec, size, view_rng(0, 0, 0, 0)) for i in range(6)]
        assert np.array_equal(view, np.concatenate(alone, axis=2))


def test_geometry_and_colours_together_are_the_view() -> None:
    """The two halves share one stream of draws, and the colours leave the crop as it was."""
    spec = Augmentation(jitter=0.5, grayscale=0.1, blur=0.1, solarize=0.5)
    for i in range(20):
        draws = view_draws(view_rng(0, 0, i, 0))
        crop = geometry(noise(14, 40, 50), spec, 32, draws)
        before = crop.copy()
        view = apply_colours(crop, draw_colours(spec, draws))
        assert np.array_equal(view, augment(noise(14, 40, 50), spec, 32, view_rng(0, 0, i, 0)))
        assert np.array_equal(crop, before)
        cut = draw_geometry(spec, 40, 50, view_draws(view_rng(0, 0, i, 0)))
        assert 0 <= cut.top <= 40 - cut.height
        assert 0 <= cut.left <= 50 - cut.width


def test_probabilities_are_kept() -> None:
    """3 in 10 of 1,000 views are flipped, give or take four standard deviations."""
    image = noise(8)
    flipped = [np.array_equal(augment(image, only(horizontal_flip=0.3), 24, view_rng(1, 0, i, 0)), image[:, ::-1]) for i in range(1000)]
    assert abs(np.mean(flipped) - 0.3) < 0.058


def test_the_evaluation_view_is_the_middle_of_the_image_at_the_asked_size() -> None:
    """Shrinking to half averages blocks of 2 x 2; the wider side is cut at both ends; the right size stays as it is."""
    image = noise(9, 40, 60)
    blocks = image.reshape(20, 2, 30, 2, 3).mean((1, 3))
    assert np.abs(evaluation_view(image, 20) - blocks[:, 5:25]).max() <= 0.5
    assert np.array_equal(evaluation_view(image[:, :40], 40), image[:, :40])
    assert evaluation_view(noise(10, 9, 5), 32).shape == (32, 32, 3)


def test_one_generator_set_anew_draws_what_the_views_own_would() -> None:
    """Seeds, epochs and instances of all sizes, in any order."""
    draws = ViewDraws()
    for key in [(0, 0, 0, 0), (2**31 - 1, 2**32 - 1, 2**50, 255), (3, 4, 10**8, 1), (0, 0, 0, 0)]:
        assert list(draws(*key)) == list(view_draws(view_rng(*key)))
