"""The sections of a run specification. `service/spec.py` joins them and checks across them.

Every attribute carries its docstring: unit, bounds and, where the paper is silent, that the value is our choice. The
docstrings become the descriptions of the JSON schema in the OpenAPI document.

"Paper" is Liu et al., AAAI 2021, arXiv 2102.04848.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from service.numbers import NumbersAreNumbers

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(NumbersAreNumbers):
    """Frozen; unknown keys are refused; NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True)


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


class Backbone(Section):
    """The network whose weights are the product."""

    name: str = Field(default="resnet50", min_length=1, max_length=100)
    """A timm architecture."""
    stem: Literal["auto", "standard", "small"] = "auto"
    """`small` puts a 3x3 convolution of stride 1 in the place of a ResNet's 7x7 of stride 2, for images under 64 pixels;
    `auto` does so for ResNets when data.image_size is under 64; `standard` leaves the architecture alone."""
    args: dict[str, JsonValue] = Field(default_factory=dict, max_length=32)
    """Further keyword arguments of timm's constructor, e.g. {"layers": [1, 1, 1, 0], "channels": [32, 64, 128, 128]}."""
    batch_norm: Literal["per_rank", "synchronised"] = "per_rank"
    """Whether BatchNorm statistics are of each rank's part of the batch, or of the global batch. Our choice: per rank."""

    @field_validator("args")
    @classmethod
    def _can_be_stored(cls, args: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            json.dumps(args, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:  # half a surrogate pair, NaN, a number of thousands of digits
            raise ValueError(f"args cannot be written as JSON ({error}): correct the value") from None
        return args


class Projector(Section):
    """Two-layer MLP between the backbone and the classifier (paper: "two-layer MLP with a non-linearity between")."""

    hidden_size: int | None = Field(default=None, ge=8, le=65_536)
    """Width of the hidden layer. Default: the backbone's feature size (our choice; the paper gives no width)."""
    batch_norm: bool = True
    """BatchNorm between the hidden layer and its ReLU. Our choice, by measurement (LOG.md): without it the features of the
    random encoder, and so the rows of the prior, all point almost the same way."""


class Classifier(Section):
    """The million-way instance classifier, Eq. (1) and Eq. (3) of the paper."""

    embedding_size: int = Field(default=128, ge=4, le=4096)
    """D, the size of the projected feature and of a class row. Paper: 128."""
    temperature: float = Field(default=0.15, ge=0.03, le=1.0)
    """tau of the cosine softmax. Paper: 0.15. Lower ones are refused: exp(cosine / tau) is taken as it is, without a running
    maximum, and its range in fp32 is tested down to 0.03."""
    smoothing: float = Field(default=0.2, ge=0.0, lt=1.0)
    """alpha: the share of the target spread evenly over the K hardest classes. Paper: 0.2. 0 gives Eq. (1)."""
    hardest_k: int = Field(default=50, ge=1, le=10_000)
    """K, the number of hardest classes that share alpha; must be under the number of images. Our choice: the paper gives no K."""
    hardest_by: Literal["sample_score", "class_similarity"] = "sample_score"
    """`sample_score`: the classes with the highest cos(w_j, x_i), found anew for each sample and step; `class_similarity`: the
    classes whose rows are nearest to the sample's own row, cos(w_i, w_j), found every refresh_epochs. The paper does not say
    which; the default is chosen by measurement (LOG.md)."""
    refresh_epochs: int = Field(default=1, ge=1, le=1000)
    """Epochs between searches for the hardest classes by class similarity."""
    initialisation: Literal["prior", "random"] = "prior"
    """`prior`: each row starts as its image's feature under the random encoder (paper: contrastive prior)."""
    parallelism: Literal["class", "zero3"] = "class"
    """`class`: each rank keeps N/P rows and features travel; `zero3`: rows are a parameter that DeepSpeed partitions and gathers."""
    products: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the classifier's matrix products; sums and updates are fp32. `auto`: that of `precision`, or fp32 where the device has
    no such products. A CPU never multiplies fp16."""
    rows_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """How the rows are kept. 16 bits halve their memory; updates are then rounded stochastically."""
    momentum_dtype: Literal["fp32", "bf16"] = "fp32"
    """How the rows' momentum is kept; bf16 with stochastic rounding."""
    rows_on: Literal["device", "host"] = "device"
    """`host`: rows and momentum stay in host memory and travel to the GPU chunk by chunk, for more classes than it holds."""
    chunk_size: int | None = Field(default=None, ge=16, le=1_048_576)
    """Classes whose scores are held at a time. Default: what suits the device's caches (on a CPU 4096). The Triton kernels take at
    most 65,536."""


class Augmentation(Section):
    """How a view is made of an image (paper: random crop, colour jitter, Gaussian blur, after MoCo v2; numbers are MoCo v2's)."""

    views_per_image: int = Field(default=1, ge=1, le=8)
    """Views of each image in a batch; all share the image's class. Our choice: 1."""
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
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            pair = _ordered(name, getattr(self, name))
            if pair[0] <= 0:
                raise ValueError(f"{name} starts at {pair[0]}: it must be greater than 0")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale ends at {self.crop_scale[1]}: a crop is at most the whole image, 1.0")
        return self


class Optimizer(Section):
    """SGD for the encoder and for the class rows, apart."""

    global_batch_size: int = Field(default=256, ge=2, le=1_048_576)
    """Images per step over all ranks. An epoch of N images is ceil(N / global_batch_size) steps of equal size (to within one image)."""
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=4096)
    """Parts in which each rank computes its share of a step, one after another, for a global batch that does not fit its memory. The step
    is that of the mean of the parts' losses; a part's BatchNorm statistics are its own."""
    learning_rate: float = Field(default=0.03, gt=0.0, le=1000.0)
    """Encoder's and projector's peak learning rate, for this batch size as it is (no hidden scaling). Paper: 0.48 at 4096."""
    classifier_learning_rate: float | None = Field(default=None, gt=0.0, le=10_000.0)
    """The rows' peak learning rate. Default: the encoder's."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """SGD momentum of both. Paper: 0.9."""
    weight_decay: float = Field(default=1e-4, ge=0.0, le=1.0)
    """L2 penalty of the encoder. Paper: 1e-4."""
    classifier_weight_decay: float | None = Field(default=None, ge=0.0, le=1.0)
    """L2 penalty of the rows. Default: the encoder's."""

    @property
    def images_at_a_time(self) -> int:
        """Over all ranks: a step's, or with gradient accumulation a part's."""
        return self.global_batch_size // self.gradient_accumulation_steps


class Schedule(Section):
    """Length of the run, linear warm-up, cosine decay to 0. Give epochs or steps, not both."""

    epochs: int | None = Field(default=None, ge=1, le=100_000)
    """Passes over the images."""
    steps: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Optimiser steps."""
    warmup_epochs: float | None = Field(default=None, ge=0.0, le=100_000)
    """Epochs of linear warm-up; with epochs. Paper: 10."""
    warmup_steps: int | None = Field(default=None, ge=0, le=1_000_000_000)
    """Steps of linear warm-up; with steps."""

    @model_validator(mode="after")
    def _one_unit(self) -> Schedule:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"epochs is {self.epochs} and steps is {self.steps}: give exactly one of them")
        if self.steps is not None and self.warmup_epochs:
            raise ValueError("warmup_epochs goes with epochs: give warmup_steps beside steps")
        if self.epochs is not None and self.warmup_steps:
            raise ValueError("warmup_steps goes with steps: give warmup_epochs beside epochs")
        length, warmup = self.epochs or self.steps or 0, self.warmup_epochs or self.warmup_steps or 0
        if warmup > length:
            unit = "epochs" if self.epochs else "steps"
            raise ValueError(f"warmup_{unit} is {warmup:g}, longer than the run's {length} {unit}: shorten the warm-up")
        return self


class Resources(Section):
    """What the run occupies."""

    nodes: int = Field(default=1, ge=1, le=4096)
    """Machines."""
    ranks_per_node: int = Field(default=1, ge=1, le=64)
    """Training processes on each machine: one per GPU; on a CPU, at most one per core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: cuda where the worker has a GPU."""
    min_ranks: int | None = Field(default=None, ge=1, le=4096 * 64)
    """Fewest ranks that an attempt may start on when nodes x ranks_per_node are not free: the global batch and the schedule stay as they
    are, the checkpoint is dealt out anew. Default: nodes x ranks_per_node, no range."""
    max_hours: float | None = Field(default=None, gt=0.0, le=24 * 365)
    """Longest that an attempt may hold its slots; then it writes a checkpoint and queues again. A run with a limit can start in a gap
    that is kept for a larger one. Default: no limit."""

    @property
    def world_size(self) -> int:
        """Ranks of the run, over all nodes."""
        return self.nodes * self.ranks_per_node

    def shapes(self, images_at_a_time: int) -> list[tuple[int, int]]:
        """What an attempt may occupy, as (nodes, ranks on each), the largest first: the whole, and with min_ranks fewer nodes, then fewer
        ranks on one node, where they divide the batch (Optimizer.images_at_a_time) and leave BatchNorm 4 images on each."""
        fewer = [(nodes, self.ranks_per_node) for nodes in range(self.nodes - 1, 0, -1)]
        fewer += [(1, ranks) for ranks in range(self.ranks_per_node - 1, 0, -1)]
        least = self.world_size if self.min_ranks is None else self.min_ranks
        fits = [(n, r) for n, r in fewer if n * r >= least and images_at_a_time % (n * r) == 0 and images_at_a_time >= 4 * n * r]
        return [(self.nodes, self.ranks_per_node), *fits]


class Retries(Section):
    """How often a run is tried again. A new checkpoint gives the budgets back; the same error at the same step twice ends the run."""

    infrastructure: int = Field(default=10, ge=0, le=1000)
    """Further attempts after a lost worker, a job that stopped moving, or ranks that a signal ended."""
    crashes: int = Field(default=2, ge=0, le=1000)
    """Further attempts after an error of the job itself."""
    preemptions: int = Field(default=100, ge=0, le=100_000)
    """How often the run gives way to one of higher priority; afterwards it keeps its slots."""


class Checkpoints(Section):
    """Checkpoints hold everything that an exact resume needs, and are whole or absent."""

    every_epochs: float = Field(default=1.0, gt=0.0, le=100_000)
    """Epochs between checkpoints; fractions allowed. The last step always writes one."""
    keep_last: int = Field(default=2, ge=1, le=1000)
    """Newest checkpoints kept."""
    keep_best: bool = True
    """Keep also the one with the best kNN accuracy."""


class Evaluation(Section):
    """kNN on backbone features, before the projector. The only place where labels are read; the loss never sees them."""

    labelled: str | None = Field(default=None, min_length=1, max_length=4096)
    """Absolute path of a folder with one sub-folder of images per class. Default: no evaluation."""
    queries: str | None = Field(default=None, min_length=1, max_length=4096)
    """Such a folder with the queries; `labelled` is then the bank. Default: every fifth image of `labelled` is a query and the
    rest is the bank."""
    every_epochs: int = Field(default=5, ge=1, le=100_000)
    """Epochs between evaluations. Epoch 0, the random encoder, and the last are always evaluated."""
    k: int = Field(default=20, ge=1, le=10_000)
    """Neighbours that vote."""
    temperature: float = Field(default=0.07, gt=0.0, le=10.0)
    """A neighbour's vote weighs exp(cosine / temperature)."""
    limit: int = Field(default=50_000, ge=2, le=100_000_000)
    """Most images taken of the bank and of the queries, each; evenly spaced."""

    @model_validator(mode="after")
    def _queries_need_a_bank(self) -> Evaluation:
        if self.queries and not self.labelled:
            raise ValueError("queries is given without labelled: name the labelled folder that serves as the bank")
        return self


def describe(value: Any) -> str:
    """A value as an error message shows it: short, one line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more digits, or a depth, than Python writes out
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else text[:77] + "..."
