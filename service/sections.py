"""The sections of a run specification. `service/spec.py` joins them and checks across them.

Every attribute carries its docstring: unit, bounds and, where the paper is silent, that the value is our choice. The
docstrings become the descriptions of the JSON schema in the OpenAPI document.

"Paper" is Liu et al., AAAI 2021, arXiv 2102.04848.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from service.section import Section


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
