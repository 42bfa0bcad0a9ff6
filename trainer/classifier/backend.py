"""What computes the two passes over a shard, whatever the device: the interface.

With x_hat = x / |x|, w_hat = w / |w|, s_bj = x_hat_b . w_hat_j (the cosine) and temperature tau:

    Eq. (1)  J_b = -s_by / tau + log sum_j exp(s_bj / tau)                          y: the sample's own class
    Eq. (3)  J_b = -sum_j t_bj s_bj / tau + log sum_j exp(s_bj / tau)               t: 1 - alpha, alpha / K, or 0

The cosine is at most 1 and tau at least 0.03, so that exp(s / tau) needs no running maximum in fp32 (it is under 4e14). The first pass
(`scan`) yields the partition sum, its gradient towards x_hat and the hardest classes; the second recomputes the scores and yields the
rows' gradient chunk by chunk. That is four matrix products in all, and never more than a chunk of the B x N scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainer.classifier.store import SGD, Chunk, RowStore
from trainer.classifier.targets import TargetPairs, join_pairs


@dataclass
class Scan:
    """What one shard contributes to the first pass. To be summed (or merged) over the shards."""

    partition_B: Tensor
    """sum_j exp(s_bj / tau), fp64: a sum over up to 1e8 classes."""
    pull_BD: Tensor
    """sum_j exp(s_bj / tau) w_hat_j, fp32."""
    key_BK: Tensor
    """Keys (topk.py) of the hardest classes, descending."""


@dataclass
class SecondPass:
    """What the rows' gradient of sum_b scale_b J_b is made of."""

    x_BD: Tensor
    """Unit norm, fp32."""
    partition_B: Tensor
    """Over all shards, fp64."""
    scale_B: Tensor
    """fp32; 0 for padding."""
    pairs: TargetPairs
    """The targets in this shard."""


def join_passes(parts: list[SecondPass]) -> SecondPass:
    """One pass over the samples of several, each scaled by 1 / their number."""
    if len(parts) == 1:
        return parts[0]
    pairs, before = [], 0
    for part in parts:
        pairs.append(part.pairs.shifted(before))
        before += len(part.x_BD)
    x_BD, partition_B, scale_B = (torch.cat([getattr(part, name) for part in parts]) for name in ("x_BD", "partition_B", "scale_B"))
    return SecondPass(x_BD, partition_B, scale_B / len(parts), join_pairs(pairs))


class Backend(Protocol):
    """Passes over the rows of one shard."""

    name: str
    """E.g. "torch, fp32": for logs and tables."""

    def scan(self, store: RowStore, x_BD: Tensor, own_B: Tensor, k: int, temperature: float) -> Scan:
        """First pass. `x_BD` (fp32) has unit norm; the own class `own_B` (global ids; -1 for padding, whose x is 0) is never among the
        `k` hardest."""
        ...

    def row_gradients(self, store: RowStore, batch: SecondPass, temperature: float, *, update: bool) -> Iterator[tuple[Chunk, Tensor]]:
        """Second pass: yields chunks and their gradients [C, D] (fp32) against the raw rows. With `update` the caller may call
        `chunk.update`. A gradient is valid until the next one is asked for."""
        ...

    def update(self, store: RowStore, batch: SecondPass, temperature: float, sgd: SGD) -> None:
        """Second pass, with one step of SGD on every chunk."""
        ...
