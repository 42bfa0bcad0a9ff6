"""The colours of a batch of views at once, on the device that trains: jitter, greyscale, blur, solarisation, normalisation.

The same as `apply_colours` of augment.py, from the same parameters, in floats: it clamps to 0 .. 255 where that rounds to 8 bits too,
because brightness clips. Every view has its own parameters and its own order, and there is neither a loop over views nor a branch on
their parameters nor a wait of the host for the device: a step that is off for a view is done with numbers that change nothing.

Brightness, contrast and saturation are each a blend with something of less colour. The hue, which costs several of them, is turned
once for all views: each has its blends before or after it in slots (see `colours_as_array`). The blur is two matrix products.

    b views   C channels   S side
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from service.data_sections import Augmentation
from trainer.data.augment import BLUR_SIGMA, GRAYSCALE, HUE, NUM_COLUMNS, SLOTS_AFTER_HUE, SLOTS_BEFORE_HUE, SOLARIZE

LUMA = (0.299, 0.587, 0.114)
_PART_NUMBERS = 2**25
"""Views are taken so many at a time that one of the four or so arrays between the steps has no more numbers: 128 MiB of float32."""


@torch.no_grad()
def apply(
    images: Tensor, params: Tensor, spec: Augmentation, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Normalised views [b, C, S, S] of `dtype` on the images' device, channels last in memory.

    `images`: crops [b, C, S, S] uint8, of any memory layout. `params`: [b, NUM_COLUMNS] float32 on the same device, by
    `colours_as_array`; they were drawn with `spec`, which says what can be left out for all. `mean`, `std`: [C], on the scale 0 to 1.
    """
    b, channels, height, width = images.shape
    assert params.shape == (b, NUM_COLUMNS), f"params are {tuple(params.shape)}, and the batch is {tuple(images.shape)}"
    out = torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)
    scale, shift = _affine(tuple(mean), tuple(std), images.device)
    part = max(1, _PART_NUMBERS // (channels * height * width))
    for x, p, normalised in zip(images.split(part), params.split(part), out.split(part), strict=True):
        changed = _colours(x.to(torch.float32, memory_format=torch.contiguous_format), p[:, :, None, None], spec)
        normalised.copy_(torch.addcmul(shift, changed, scale))
    return out


def _colours(x: Tensor, p: Tensor, spec: Augmentation) -> Tensor:
    """`x` [b, C, S, S] float32, 0 .. 255, is overwritten; `p` [b, NUM_COLUMNS, 1, 1]. The branches are on the specification alone."""
    is_rgb = x.shape[1] == 3
    num_blends = sum(amount > 0 for amount in (spec.brightness, spec.contrast, spec.saturation if is_rgb else 0)) if spec.jitter else 0
    turns_hue = is_rgb and spec.jitter > 0 and spec.hue > 0
    for at in SLOTS_BEFORE_HUE[:num_blends]:
        x = _blend(x, p[:, at : at + 3]).clamp_(0, 255)
    if turns_hue:
        x = _turn_hue(x, p[:, HUE])
        for at in SLOTS_AFTER_HUE[:num_blends]:
            x = _blend(x, p[:, at : at + 3]).clamp_(0, 255)
    if is_rgb and spec.grayscale > 0:
        x = torch.lerp(x, _luma(x), p[:, GRAYSCALE, None])
    if spec.blur > 0:
        x = _blur(x, p[:, BLUR_SIGMA, 0, 0], spec.blur_sigma[1])
    if spec.solarize > 0:
        inverted = 255 * (2 - p[:, SOLARIZE, None]) - x  # 510 - x is never the smaller one
        x = torch.minimum(x, inverted)
    return x


def _luma(x: Tensor) -> Tensor:
    """[b, 1, S, S]: of three channels their luma, else their mean."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    luma = x[:, :1] * LUMA[0]
    return luma.add_(x[:, 1:2], alpha=LUMA[1]).add_(x[:, 2:], alpha=LUMA[2])


def _blend(x: Tensor, slot: Tensor) -> Tensor:
    """f x + (1 - f) t into `x`; slot [b, 3, 1, 1]: f, and the shares in t of the mean luma and of the pixel's luma."""
    luma = _luma(x)
    target = torch.addcmul(luma.mean((2, 3), keepdim=True) * slot[:, 1:2], luma, slot[:, 2:3])
    return torch.lerp(target, x, slot[:, :1], out=x)


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """The hue of HSV turned by `turn` [b, 1, 1], in 256ths of the circle; value and chroma stay.

    As OpenCV's, which holds the hue in 8 bits: rounded, and stretched by 256 / 255 on the way back. Where nothing is turned it is exact.
    Back from HSV, channel n is V - chroma clamp(2 - |(H + n) mod 6 - 2|, 0, 1) for a hue H in sixths and n = 5, 3, 1.
    """
    red, green, blue = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    is_red, is_green = red == value, green == value
    difference = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    sector = torch.where(is_green, 256 / 3, 512 / 3).masked_fill_(is_red, 0.0)
    hue = torch.addcdiv(sector, difference, chroma.clamp(min=1e-6), value=256 / 6)  # without chroma the difference is 0 as well
    turned = hue.round().add_(turn).remainder_(256).mul_(256 / 255)
    hue = torch.where(turn == 0, hue, turned)
    distance = torch.add(_channel_sixths(x.device), hue[:, None], alpha=6 / 256).remainder_(6).sub_(2).abs_().clamp_(1, 2)
    return torch.addcmul(torch.sub(value, chroma, alpha=2)[:, None], distance, chroma[:, None])


def _blur(x: Tensor, sigma: Tensor, largest_sigma: float) -> Tensor:
    """A Gaussian blur along both sides, each view by its own sigma [b], 0 for none; edges are mirrored about the last pixel.

    Along a side the blur is a product with a banded matrix [S, S], mirrored edges included. At 224 pixels that is 0.13 GFLOP per view, a
    hundredth of a ResNet-50's step, and 2 passes over memory in the place of the 26 of 13 shifts.
    """
    b, channels, side, _ = x.shape
    radius = min(_radius(largest_sigma), side - 1)
    offset = torch.arange(radius + 2, device=x.device, dtype=torch.float32)  # one more, whose weight is 0
    weight = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2).masked_fill_(offset > radius, 0)
    weight = weight / (2 * weight.sum(1, keepdim=True) - weight[:, :1])
    direct, mirrored_low, mirrored_high = (weight.index_select(1, steps) for steps in _distances(side, radius, x.device))
    matrix = direct.add_(mirrored_low).add_(mirrored_high).view(b, side, side)
    x = torch.bmm(x.view(b, channels * side, side), matrix.mT).view(x.shape)
    return torch.matmul(matrix[:, None], x)


def _radius(sigma: float) -> int:
    """Three sigma, as OpenCV's for 8 bits."""
    return round(6 * sigma + 1) // 2


@functools.lru_cache(maxsize=8)  # a tensor made of Python's numbers makes the host wait for the device
def _distances(side: int, radius: int, device: torch.device) -> tuple[Tensor, ...]:
    """From pixel i to pixel j, and to j's images in the mirrors at both ends: [S * S] int64 each, at most radius + 1."""
    i, j = torch.arange(side)[:, None], torch.arange(side)[None]
    far = radius + 1
    mirrored_low = torch.where(j > 0, i + j, far)  # the mirrors stand in the middle of the last pixels, which have no images
    mirrored_high = torch.where(j < side - 1, 2 * (side - 1) - i - j, far)
    return tuple(steps.clamp(max=far).flatten().to(device) for steps in ((i - j).abs(), mirrored_low, mirrored_high))


@functools.lru_cache(maxsize=8)
def _channel_sixths(device: torch.device) -> Tensor:
    return torch.tensor((5.0, 3.0, 1.0), device=device)[:, None, None]


@functools.lru_cache(maxsize=8)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as x scale + shift, [C, 1, 1] both."""
    scale = torch.tensor([1 / (255 * one) for one in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale[:, None, None], shift[:, None, None]
