"""The soft targets of Eq. (3) and the classes that share them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12
"""Under the norms, as torch.nn.functional.normalize has it."""
PAIRS = 2048
"""Rows gathered at a time where scores are wanted of single pairs: 2 MB in float64 at D = 128, which stays in cache."""


@dataclass(frozen=True)
class SoftTargets:
    """`smoothing` is alpha, spread over `hardest_k` = K classes. alpha = 0 gives Eq. (1)."""

    temperature: float
    smoothing: float
    hardest_k: int

    @property
    def num_hardest(self) -> int:
        return self.hardest_k if self.smoothing > 0 else 0


@dataclass
class TargetPairs:
    """T pairs of a sample and a class of this shard that shares its target. The classes of a sample are distinct."""

    sample_T: Tensor
    """Of the global batch."""
    class_T: Tensor
    """Of this shard: 0 is its first class."""
    weight_T: Tensor
    """1 - alpha for the sample's own class, alpha / K for a hardest one."""
    score_T: Tensor
    """The cosine, fp32."""

    def shifted(self, samples: int) -> TargetPairs:
        """The same pairs where the samples come after `samples` others."""
        return TargetPairs(self.sample_T + samples, self.class_T, self.weight_T, self.score_T)


def join_pairs(parts: list[TargetPairs]) -> TargetPairs:
    names = ("sample_T", "class_T", "weight_T", "score_T")
    return TargetPairs(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def in_order_of_samples(*parts: TargetPairs) -> TargetPairs:
    """All pairs, those of a sample beside each other."""
    pairs = join_pairs(list(parts))
    order_T = pairs.sample_T.argsort(stable=True)
    return TargetPairs(pairs.sample_T[order_T], pairs.class_T[order_T], pairs.weight_T[order_T], pairs.score_T[order_T])


def pair_scores(row_TD: Tensor, x_TD: Tensor) -> Tensor:
    """cos(row, x) [T] in fp32, of unit-norm x, taken in float64: the same to the bit wherever in a shard or a chunk a row stands,
    whatever the precision of the products is. Ties and near-ties are so decided alike by any number of ranks."""
    row_TD = row_TD.double()
    norm_T = torch.linalg.vector_norm(row_TD, dim=1).clamp_min_(EPS)
    return (torch.linalg.vecdot(row_TD, x_TD.double()) / norm_T).float()


def score_pairs(rows_nD: Tensor, x_BD: Tensor, class_T: Tensor, sample_T: Tensor) -> Tensor:
    """cos(rows[class], x[sample]) [T], a bounded number of rows at a time. The rows may lie on another device."""
    scores = [rows_nD.new_empty(0, dtype=torch.float32, device=x_BD.device)]
    for class_t, sample_t in zip(class_T.split(PAIRS), sample_T.split(PAIRS), strict=True):
        row_tD = rows_nD[class_t.to(rows_nD.device)].to(x_BD.device)
        scores.append(pair_scores(row_tD, x_BD[sample_t]))
    return torch.cat(scores)


def pull_of(rows_nD: Tensor, pairs: TargetPairs, num_samples: int) -> Tensor:
    """[B, D] fp32: of each sample, sum_j t_bj w_hat_j over its pairs. `pairs` are in ascending order of samples."""
    pull_BD = torch.zeros(num_samples, rows_nD.shape[1], device=pairs.sample_T.device)
    for class_t, sample_t, weight_t in zip(*(part.split(PAIRS) for part in (pairs.class_T, pairs.sample_T, pairs.weight_T)), strict=True):
        row_tD = rows_nD[class_t.to(rows_nD.device)].to(pull_BD.device).float()
        weight_t = weight_t / row_tD.norm(dim=1).clamp_min_(EPS)
        # One row of a sparse matrix for each sample: summed in the order of the pairs, on any device the same.
        count_B = torch.bincount(sample_t, minlength=num_samples)
        offset_B = F.pad(count_B.cumsum(0), (1, 0))[:-1]
        place_t = torch.arange(len(sample_t), device=sample_t.device)
        pull_BD += F.embedding_bag(place_t, row_tD, offset_B, mode="sum", per_sample_weights=weight_t)
    return pull_BD
