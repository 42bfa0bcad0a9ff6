"""The loss and its gradients over a shard of the classes, one chunk at a time: the B x N matrix is never formed.

With x_hat = x / |x|, w_hat = w / |w|, s_bj = x_hat_b . w_hat_j (the cosine) and temperature tau:

    Eq. (1)  J_b = -s_by / tau + log sum_j exp(s_bj / tau)                          y: the sample's own class
    Eq. (3)  J_b = -sum_j t_bj s_bj / tau + log sum_j exp(s_bj / tau)               t: 1 - alpha, alpha / K, or 0

The cosine is at most 1, so exp((s - 1) / tau) needs no running maximum; with tau >= 0.03 it stays in the range of fp32.
The first pass (`scan`) yields the partition sum, its gradient towards x_hat and the hardest classes; the second
(`row_gradients`) recomputes the scores and yields the rows' gradient chunk by chunk. That is four matrix products in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12  # under the norms, as torch.nn.functional.normalize has it


@dataclass(frozen=True)
class SoftTargets:
    """The targets of Eq. (3): `smoothing` is alpha, spread over `hardest_k` = K classes. alpha = 0 gives Eq. (1)."""

    temperature: float
    smoothing: float
    hardest_k: int

    @property
    def num_hardest(self) -> int:
        return self.hardest_k if self.smoothing > 0 else 0


@dataclass
class Scan:
    """What one shard contributes to the first pass. To be summed (or merged) over the shards."""

    partition_B: Tensor
    """sum_j exp((s_bj - 1) / tau), fp64: a sum over up to 1e8 classes."""
    pull_BD: Tensor
    """sum_j exp((s_bj - 1) / tau) w_hat_j."""
    top_values_BK: Tensor
    """Cosines of the hardest classes, descending; -inf where the shard has fewer than K."""
    top_classes_BK: Tensor
    """Their global class ids; -1 where there is none."""


def scan(rows_nD: Tensor, start: int, x_BD: Tensor, instance_B: Tensor, targets: SoftTargets, chunk_size: int) -> Scan:
    """First pass over the classes start .. start + n, whose rows are `rows_nD`. `x_BD` has unit norm; the own class
    `instance_B` (global ids) is never among the hardest. Without hardest classes by score, pass targets with alpha = 0."""
    B, K = len(x_BD), targets.num_hardest
    result = Scan(
        x_BD.new_zeros(B, dtype=torch.float64),
        torch.zeros_like(x_BD),
        x_BD.new_full((B, K), -torch.inf),
        instance_B.new_full((B, K), -1),
    )
    batch_B = torch.arange(B, device=x_BD.device)
    for at in range(0, len(rows_nD), chunk_size):
        w_CD = F.normalize(rows_nD[at : at + chunk_size], dim=1, eps=EPS)
        score_BC = x_BD @ w_CD.T
        weight_BC = ((score_BC - 1) / targets.temperature).exp_()
        result.partition_B += weight_BC.sum(1, dtype=torch.float64)
        result.pull_BD.addmm_(weight_BC, w_CD)
        if K:
            own_B = instance_B - (start + at)
            inside_B = (own_B >= 0) & (own_B < len(w_CD))
            score_BC[batch_B[inside_B], own_B[inside_B]] = -torch.inf
            value_BK, column_BK = score_BC.topk(min(K, len(w_CD)), dim=1)
            result.top_values_BK, result.top_classes_BK = merge_top_k(
                torch.cat([result.top_values_BK, value_BK], 1),
                torch.cat([result.top_classes_BK, column_BK + (start + at)], 1),
                K,
            )
    return result


def merge_top_k(value_BM: Tensor, class_BM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` highest of M >= k candidates, descending; of equal values, the earlier candidate. -inf carries class -1."""
    value_BM, order_BM = value_BM.sort(dim=1, descending=True, stable=True)
    value_BK, class_BK = value_BM[:, :k], class_BM.gather(1, order_BM[:, :k])
    return value_BK, class_BK.masked_fill(value_BK == -torch.inf, -1)


def target_classes(instance_B: Tensor, hardest_BK: Tensor, targets: SoftTargets) -> tuple[Tensor, Tensor]:
    """Classes [B, 1 + K] and weights [B, 1 + K] of the soft targets. A class id of -1 (padding) has weight 0."""
    class_BT = torch.cat([instance_B[:, None], hardest_BK], 1)
    weight_BT = class_BT.new_zeros(class_BT.shape, dtype=torch.float32)
    alpha = targets.smoothing if hardest_BK.shape[1] else 0.0
    weight_BT[:, 0] = 1 - alpha
    weight_BT[:, 1:] = alpha / max(1, hardest_BK.shape[1])
    return class_BT, weight_BT.masked_fill(class_BT < 0, 0.0)


def target_pull(rows_nD: Tensor, start: int, class_BT: Tensor, weight_BT: Tensor) -> Tensor:
    """[B, D]: sum_j t_bj w_hat_j over the targets that lie in this shard."""
    local_BT = class_BT - start
    inside_BT = (local_BT >= 0) & (local_BT < len(rows_nD)) & (class_BT >= 0)
    if not len(rows_nD):
        return rows_nD.new_zeros(len(class_BT), rows_nD.shape[1])
    local_BT = local_BT.where(inside_BT, 0)
    # The norms of the rows touched only; embedding_bag sums them without a [B, 1 + K, D] copy of the rows.
    norm_BT = torch.empty_like(weight_BT)
    for column in range(class_BT.shape[1]):
        norm_BT[:, column] = rows_nD[local_BT[:, column]].norm(dim=1).clamp_min(EPS)
    return F.embedding_bag(local_BT, rows_nD, per_sample_weights=weight_BT.where(inside_BT, 0.0) / norm_BT, mode="sum")


def row_gradients(
    rows_nD: Tensor,
    start: int,
    x_BD: Tensor,
    partition_B: Tensor,
    class_BT: Tensor,
    weight_BT: Tensor,
    scale_B: Tensor,
    temperature: float,
    chunk_size: int,
) -> Iterator[tuple[slice, Tensor]]:
    """Second pass: yields (rows of the chunk, their gradient [C, D]) of sum_b scale_b J_b, against the raw rows.

    `partition_B` is the sum over all shards. The caller may change a chunk's rows once it has the chunk's gradient.
    """
    owner_T = (class_BT - start).flatten()
    order_T = owner_T.argsort(stable=True)
    edges = torch.arange(0, len(rows_nD) + chunk_size, chunk_size, device=owner_T.device)
    bounds = torch.searchsorted(owner_T[order_T], edges).tolist()
    sample_T = order_T // class_BT.shape[1]
    share_T = (weight_BT * scale_B[:, None]).flatten()[order_T]
    factor_B1 = (scale_B / partition_B).to(x_BD.dtype)[:, None]
    for chunk, at in enumerate(range(0, len(rows_nD), chunk_size)):
        rows_CD = rows_nD[at : at + chunk_size]
        norm_C1 = rows_CD.norm(dim=1, keepdim=True).clamp_min(EPS)
        w_CD = rows_CD / norm_C1
        error_BC = ((x_BD @ w_CD.T - 1) / temperature).exp_().mul_(factor_B1)
        mine = slice(bounds[chunk], bounds[chunk + 1])
        # A sample's targets are distinct classes, so no entry is hit twice and the order does not matter.
        column_T = owner_T[order_T[mine]] - at
        inside_T = column_T < len(rows_CD)
        error_BC[sample_T[mine][inside_T], column_T[inside_T]] -= share_T[mine][inside_T]
        gradient_CD = (error_BC.T @ x_BD).div_(temperature)
        # Through w_hat = w / |w|: only what is orthogonal to the row moves it.
        gradient_CD -= w_CD * (gradient_CD * w_CD).sum(1, keepdim=True)
        yield slice(at, at + len(rows_CD)), gradient_CD.div_(norm_C1)
