"""Memory of one rank, and how long a run trains, from its specification: arithmetic, for a plan before anything starts.

N images (rows), P ranks, D embedding size, B samples of the global batch, b of one rank, C classes of a chunk, K hardest classes, p
parameters of the encoder. Bytes are those of tensors; Python, PyTorch and what their allocators keep come on top. How far the estimate
lies from what was measured stands in LOG.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from service.fork import SMALL_IMAGE
from service.protocol import MemoryEstimate
from service.spec import RunSpec

FP32 = 4
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CPU_CHUNK, CPU_TILE, GPU_SCORES = 4096, 256, 1 << 25
"""Classes and samples of a tile of scores on a CPU, scores of a chunk on a GPU (trainer/classifier/choose.py takes them from here)."""
REDUCE_BUCKET = 50_000_000
"""Gradients that DeepSpeed's ZeRO collects before it reduces them (trainer/engine.py); on a GPU the buffer is taken whole."""
SAME_SIZE = frozenset({"img_size", "drop_rate", "drop_path_rate", "zero_init_last"})
"""Arguments of timm's constructors that change nothing here, but for an embedding of positions."""


@dataclass(frozen=True, slots=True)
class BackboneSize:
    """A line of backbone_sizes.txt (trainer/backbone_sizes.py)."""

    has_small_stem: bool
    pixels: int
    """Side of the images that it was measured with."""
    num_features: int
    num_parameters: int
    image_bytes: int
    """What one image adds to the peak of a forward and backward pass in fp32."""


@cache
def backbone_sizes() -> dict[tuple[str, str], BackboneSize]:
    """By name and the constructor's arguments, as JSON; without the architectures that could not be measured."""
    sizes = {}
    for line in (files("service") / "backbone_sizes.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, args, stem, *numbers = line.split("\t")
        if "-" not in numbers:
            sizes[name, args] = BackboneSize(stem == "small", *map(int, numbers))
    return sizes


def backbone_size(spec: RunSpec) -> BackboneSize | None:
    """None where the architecture, or this one with its arguments, was not measured."""
    args = {name: value for name, value in spec.backbone.args.items() if name not in SAME_SIZE}
    return backbone_sizes().get((spec.backbone.name, json.dumps(args, separators=(",", ":"), sort_keys=True)))


def memory_per_rank(spec: RunSpec, num_images: int, num_ranks: int) -> MemoryEstimate:
    """Of the rank that holds most, at the peak of a training step."""
    size = backbone_size(spec)
    section = spec.classifier
    num_elements = -(-num_images // num_ranks) * section.embedding_size
    rows, momentum = num_elements * BYTES[section.rows_dtype], num_elements * BYTES[section.momentum_dtype]
    on_device = 0 if section.rows_on == "host" else rows + momentum
    work = _classifier_work(spec, num_images, num_ranks)
    encoder = _encoder(spec, size, num_ranks) if size else None
    activations = _activations(spec, size, num_ranks) if size else None
    total = None if encoder is None or activations is None else on_device + work + encoder + activations
    return MemoryEstimate(rows=rows, rows_momentum=momentum, classifier_work=work, encoder=encoder, activations=activations, total=total)


def gpu_chunk(samples: int, embedding_size: int) -> int:
    """Classes of a chunk on a GPU without Triton: at most GPU_SCORES scores, and rows of a quarter of their bytes."""
    return max(256, min(GPU_SCORES // max(1, samples), GPU_SCORES // (4 * embedding_size)))


def local_images(spec: RunSpec, num_ranks: int) -> int:
    """Images that one rank has at a time, at most."""
    return -(-spec.optimizer.images_at_a_time // num_ranks)


def num_steps(spec: RunSpec, num_images: int) -> int:
    """Length of the run (trainer/schedule.py)."""
    schedule = spec.schedule
    return schedule.steps or (schedule.epochs or 0) * -(-num_images // spec.optimizer.global_batch_size)


def training_seconds(spec: RunSpec, num_images: int, num_ranks: int, images_per_second: float) -> float:
    """Without the prior, evaluations and checkpoints. `images_per_second`: of one rank."""
    return num_steps(spec, num_images) * min(spec.optimizer.global_batch_size, num_images) / (images_per_second * num_ranks)


def _classifier_work(spec: RunSpec, num_images: int, num_ranks: int) -> int:
    """What the classifier holds beside rows and momentum (trainer/classifier)."""
    section = spec.classifier
    D, K, b = section.embedding_size, section.hardest_k if section.smoothing else 0, local_images(spec, num_ranks) * spec.num_views
    if section.parallelism == "zero3":  # the rank's own samples against all rows, which are gathered, and get a whole gradient
        n, B, gathered = num_images, b, 2 * num_images * D * FP32
    else:
        n, B, gathered = -(-num_images // num_ranks), b * num_ranks, 0
    # A tile of scores, and the chunk's rows: as they are read, of unit norm, their gradient, a product (trainer/classifier/choose.py).
    on_cpu = spec.resources.device == "cpu"
    chunk = min(n, section.chunk_size or (CPU_CHUNK if on_cpu else gpu_chunk(B, D)))
    scores = chunk * (min(B, CPU_TILE) if on_cpu else B) * FP32 + 4 * chunk * D * FP32
    if section.rows_on == "host":  # three chunks of rows and momentum
        scores += 3 * chunk * D * (BYTES[section.rows_dtype] + BYTES[section.momentum_dtype])
    # Features, their gradients and targets, as they were gathered and as they travel; ids and weights of the target classes. The features
    # and targets of all parts wait for the step, which joins them.
    waiting = 2 * (spec.optimizer.gradient_accumulation_steps - 1) * B * (D * FP32 + 24 * (1 + K))
    step = gathered + scores + 7 * B * D * FP32 + 40 * B * (1 + K) + waiting
    if section.hardest_by != "class_similarity" or not K:
        return step
    # Between two steps (trainer/classifier/similarity.py): scores of a block; of the rows asked for, keys of the nearest so far and what
    # waits to be ranked.
    block = min(4096, n)
    search = min(262_144, n) * (K * 8 + 16 * max(16, K // 2)) + block * (block + 4 * K) * FP32
    return n * K * 4 + max(step, search)


def _encoder(spec: RunSpec, size: BackboneSize, num_ranks: int) -> int:
    """Parameters, gradients and momentum under DeepSpeed 0.19, and its buffers."""
    hidden, D = spec.projector.hidden_size or size.num_features, spec.classifier.embedding_size
    p = size.num_parameters + (size.num_features + 1) * hidden + 2 * hidden * spec.projector.batch_norm + (hidden + 1) * D
    own, width = -(-p // num_ranks), 2 if spec.precision == "fp16" else FP32
    if spec.zero_stage == 0:
        return 3 * p * FP32
    bucket = REDUCE_BUCKET * FP32
    states = 3 * own * FP32  # the partition's fp32 copy (stages 1 and 2 take one in fp32 too), momentum and gradient
    if spec.zero_stage == 1:
        return 2 * p * width + states + bucket
    if spec.zero_stage == 2:
        return p * width + states + bucket
    # The partition, and all parameters while they are gathered (up to stage3_max_live_parameters, 1e9).
    return (own + p) * width + states - (own * FP32 if width == FP32 else 0) + bucket


def _activations(spec: RunSpec, size: BackboneSize, num_ranks: int) -> int:
    """Of the local batch. Halved with 16 bits, where the maps of the convolutions and products are in it; bf16 (autocast) copies the
    weights too."""
    # The small stem works at the resolution that the standard one has at twice the size.
    is_small = spec.backbone.stem == "small" or (spec.backbone.stem == "auto" and spec.data.image_size < SMALL_IMAGE)
    scale = 2 if size.has_small_stem and is_small else 1
    images = sum(kind.number * (scale * kind.size / size.pixels) ** 2 for kind in spec.view_kinds)  # of the measured size
    fp32 = local_images(spec, num_ranks) * images * size.image_bytes
    weights = 2 * size.num_parameters if spec.precision == "bf16" else 0
    return round(fp32 if spec.precision == "fp32" else fp32 / 2) + weights
