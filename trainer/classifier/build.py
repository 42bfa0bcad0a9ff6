"""From a specification to a classifier with its first rows."""

from __future__ import annotations

import torch
from torch import Tensor

from service.spec import RunSpec
from trainer.classifier.choose import choose_backend
from trainer.classifier.shard import this_shard
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.targets import SoftTargets
from trainer.classifier.zero3 import Zero3Classifier

BLOCK = 65_536  # rows drawn from one seed, so that a rank draws its own shard without drawing all


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_classifier(spec: RunSpec, num_classes: int, device: torch.device) -> ShardedClassifier | Zero3Classifier:
    """The classifier of `spec` with random rows of unit norm; the same rows for any number of ranks."""
    section, optimizer = spec.classifier, spec.optimizer
    targets = SoftTargets(section.temperature, section.smoothing, section.hardest_k)
    world_size = this_shard(num_classes).world_size
    capacity = -(-optimizer.images_at_a_time // world_size) * spec.num_views
    precision = spec.precision if section.products == "auto" else section.products
    samples = capacity if section.parallelism == "zero3" else capacity * world_size
    backend = choose_backend(device, precision, samples, section.embedding_size, section.chunk_size)
    if section.parallelism == "zero3":
        whole = Zero3Classifier(num_classes, section.embedding_size, targets, backend=backend)
        whole.rows_ND.data.copy_(random_rows(0, num_classes, section.embedding_size, spec.seed))
        return whole
    decay = optimizer.classifier_weight_decay
    sharded = ShardedClassifier(
        num_classes,
        section.embedding_size,
        targets,
        capacity=capacity,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay if decay is None else decay,
        device=device,
        rows_on=section.rows_on,
        rows_dtype=DTYPES[section.rows_dtype],
        momentum_dtype=DTYPES[section.momentum_dtype],
        backend=backend,
    )
    shard = sharded.shard
    for start in range(shard.start, shard.stop, BLOCK):
        stop = min(start + BLOCK, shard.stop)
        rows_CD = random_rows(start, stop, section.embedding_size, spec.seed)
        sharded.rows_nD[start - shard.start : stop - shard.start] = rows_CD.to(sharded.rows_nD)
    return sharded


def random_rows(start: int, stop: int, embedding_size: int, seed: int) -> Tensor:
    """Rows start .. stop [stop - start, D]: directions uniform on the sphere, a function of the class and the seed only."""
    parts = []
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        generator = torch.Generator().manual_seed((seed << 24) + block)
        rows = torch.randn(BLOCK, embedding_size, generator=generator)
        first = block * BLOCK
        parts.append(rows[max(0, start - first) : min(BLOCK, stop - first)])
    rows_nD = torch.cat(parts) if parts else torch.empty(0, embedding_size)
    return torch.nn.functional.normalize(rows_nD, dim=1)
