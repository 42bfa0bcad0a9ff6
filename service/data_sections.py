"""The sections of a specification about images: which, and how a view is made of one. As service/sections.py."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from service.section import Fraction, Section


def _ordered(name: str, pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"{name} is ({pair[0]}, {pair[1]}): give the smaller number first")
    return pair


class Data(Section):
    """The images. Their labels, where they have some, never reach the loss: every image is its own class."""

    path: str = Field(min_length=1, max_length=4096)
    """A folder of images (jpg, jpeg, png, bmp, webp, tif, tiff), searched recursively, or of tar shards (WebDataset) or parquet files with
    image bytes; one such file; or a .txt, .csv or .parquet list of paths. Absolute, as the worker sees it, or a URL that fsspec opens."""
    index: str | None = Field(default=None, min_length=1, max_length=4096)
    """Absolute path of a directory that `millionway index` wrote. Default: the one within the folder where it is up to date, else the
    images are listed at the run's first start."""
    limit: int | None = Field(default=None, ge=2, le=100_000_000)
    """Use at most this many images, evenly spaced over the index. Default: all."""
    duplicates: Literal["keep", "share", "drop"] = "keep"
    """Of images with the same content, to the eye: `share` makes them one class, `drop` takes the first, `keep` leaves each its own, a
    wrong negative of the others. Found in one pass over the images, or by `millionway inspect` before."""
    image_size: int = Field(default=224, ge=16, le=1024)
    """Side of the square views and of the evaluated images, in pixels."""
    channels: int = Field(default=3, ge=1, le=64)
    """Of the images. 3: red green blue, made of grey, CMYK, palette; other numbers take the files' channels as they are (TIFF, PNG)."""
    order: Literal["shuffle", "shards", "window"] = "shuffle"
    """`shuffle`: each epoch is a permutation of all images; `shards`: the images of `shuffle_block` tar or parquet files at a time, for
    storage that is slow at random reads; `window`: a window of `window` images moves by `stride` (PIC): an image comes back soon."""
    shuffle_block: int = Field(default=16, ge=1, le=100_000)
    """Files whose images are shuffled together, with order shards."""
    window: int = Field(default=131_072, ge=2, le=100_000_000)
    """Images in the window, each seen once in it; with order window. PIC: 131072."""
    stride: int = Field(default=16_384, ge=1, le=100_000_000)
    """Images by which the window moves; an image is seen window / stride times before it rests. PIC: 16384."""
    num_workers: int | None = Field(default=None, ge=0, le=64)
    """Loader processes per rank; 0 decodes in the training process. Default: 0 on CPUs, on GPUs the cores that a rank has, less one."""
    read_timeout_seconds: float = Field(default=60.0, gt=0.0, le=3600.0)
    """A read that takes longer counts as an image that cannot be read."""
    max_bad_share: Fraction = 0.01
    """The run ends when more than this share of what it has read, and more than 10 images, could not be read or decoded. Until then
    others take their place."""
    cache_gib: float = Field(default=10.0, ge=0.0, le=1_000_000.0)
    """Most disk space, on each machine, for what was fetched from a URL (folder MILLIONWAY_CACHE_DIR, else the system's temporary one)."""
    mean: tuple[Fraction, ...] = (0.485, 0.456, 0.406)
    """Mean per channel (red, green, blue) on the scale 0 to 1; exported with the weights; one for all, or one for each channel. Default:
    ImageNet's, for other numbers of channels 0.5."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation per channel on the scale 0 to 1; as `mean`. Default: ImageNet's, for other numbers of channels 0.25."""

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if std and min(std) <= 0:
            raise ValueError(f"std is {list(std)}: every channel must be greater than 0")
        return std

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_channels(cls, document: Any) -> Any:
        channels = document.get("channels", 3) if isinstance(document, dict) else 3
        if isinstance(channels, int) and channels != 3 and 0 < channels <= 64:
            document = {"mean": [0.5], "std": [0.25]} | document
        return document

    @model_validator(mode="after")
    def _fits_channels(self) -> Data:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) == 1:
                object.__setattr__(self, name, values * self.channels)
            elif len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values with {self.channels} channels: give one for each, or one for all")
        if self.stride > self.window:
            raise ValueError(
                f"stride is {self.stride}, longer than the window of {self.window}: images between windows would never be seen"
            )
        return self


class ViewKind(NamedTuple):
    """Views of one size, so many of each image."""

    number: int
    size: int
    """Side, in pixels."""
    crop_scale: tuple[float, float]
    """Smallest and largest area of the crop, as a fraction of the image's."""


class Augmentation(Section):
    """How a view is made of an image (paper: random crop, colour jitter, Gaussian blur, after MoCo v2; numbers are MoCo v2's)."""

    views_per_image: int = Field(default=1, ge=1, le=8)
    """Views of each image in a batch; all share the image's class. Our choice: 1."""
    small_views: int = Field(default=0, ge=0, le=16)
    """Smaller views of each image beside those (multi-crop, SwAV, Caron et al., NeurIPS 2020); they cost less, and count alike in the
    loss. SwAV: 6 of 96 pixels beside 2 of 224; PIC: 3 of 96 beside 1 of 160. Our choice: 0."""
    small_size: int | None = Field(default=None, ge=8, le=1024)
    """Side of the smaller views, in pixels; less than data.image_size. Default: 3/7 of it to a multiple of 16, at least 8 (SwAV: 96 of
    224)."""
    small_crop_scale: tuple[float, float] = (0.05, 0.14)
    """As crop_scale, for the smaller views. SwAV: 0.05 to 0.14, and 0.14 to 1 for the others."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest area of the crop, as a fraction of the image's."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Smallest and largest width / height of the crop."""
    horizontal_flip: Fraction = 0.5
    """Probability of a left-right flip."""
    vertical_flip: Fraction = 0.0
    """Probability of an upside-down flip; 0.5 suits satellite and microscope images."""
    jitter: Fraction = 0.8
    """Probability of the colour jitter."""
    brightness: float = Field(default=0.4, ge=0.0, le=1.0)
    """Brightness is multiplied by a number drawn from 1 - x to 1 + x."""
    contrast: float = Field(default=0.4, ge=0.0, le=1.0)
    """As brightness, for contrast."""
    saturation: float = Field(default=0.4, ge=0.0, le=1.0)
    """As brightness, for saturation."""
    hue: float = Field(default=0.1, ge=0.0, le=0.5)
    """The hue is turned by at most this fraction of the colour circle."""
    grayscale: Fraction = 0.2
    """Probability of dropping the colours."""
    blur: Fraction = 0.5
    """Probability of the Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the view."""
    solarize: Fraction = 0.0
    """Probability of inverting all values from 128 on (BYOL, Grill et al., NeurIPS 2020: 0.2 for one of two views). MoCo v2 has none."""

    @model_validator(mode="after")
    def _pairs(self) -> Augmentation:
        for name in ("crop_scale", "small_crop_scale", "crop_ratio", "blur_sigma"):
            pair = _ordered(name, getattr(self, name))
            if pair[0] <= 0:
                raise ValueError(f"{name} starts at {pair[0]}: it must be greater than 0")
        if self.blur_sigma[1] > 32:
            raise ValueError(f"blur_sigma ends at {self.blur_sigma[1]:g}: a view is blurred by at most 32 pixels")
        for name in ("crop_scale", "small_crop_scale"):
            if getattr(self, name)[1] > 1:
                raise ValueError(f"{name} ends at {getattr(self, name)[1]}: a crop is at most the whole image, 1.0")
        return self
