"""The hardest classes: the K highest scores of each sample, exactly, in a total order, without sorting B x N scores.

A score and its class make one int64, the key: of two keys the greater is that of the higher score and, of equal scores, that of the
lower class. So any set of keys has one answer, whoever merges it and in whatever order.

Of a chunk's scores only those are looked at closely that can be among the highest: the maximum over each group of classes is
compared with the K-th best so far, and the few groups above it are opened. Scores of the products (which may be bf16) only select;
what is ranked is the score that `exact` gives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GROUP = 32  # classes of which one maximum is taken
NONE = torch.iinfo(torch.int64).min
"""The key of no class; lower than any other."""
_LOW = 0xFFFF_FFFF


def make_keys(score: Tensor, class_id: Tensor) -> Tensor:
    """int64 keys of fp32 scores and global class ids under 2^32."""
    bits = (score.float() + 0.0).view(torch.int32)  # + 0.0: -0 ties with 0
    ordered = bits ^ ((bits >> 31) & 0x7FFF_FFFF)
    return (ordered.long() << 32) | (_LOW - class_id)


def key_classes(key: Tensor) -> Tensor:
    """Their global class ids; -1 for NONE."""
    return (_LOW - (key & _LOW)).masked_fill(key == NONE, -1)


def key_scores(key: Tensor) -> Tensor:
    """Their fp32 scores; -inf for NONE."""
    ordered = (key >> 32).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFF_FFFF)).view(torch.float32).masked_fill(key == NONE, -torch.inf)


def merge_keys(key_BM: Tensor, k: int) -> Tensor:
    """[B, k]: the greatest of M keys each, descending; NONE where there are fewer."""
    if key_BM.shape[1] < k:
        key_BM = torch.nn.functional.pad(key_BM, (0, k - key_BM.shape[1]), value=NONE)
    return key_BM.topk(k, dim=1).values


class HardestClasses:
    """The `k` hardest classes of each of B samples among those offered so far, chunk by chunk in ascending order of classes."""

    def __init__(self, own_B: Tensor, k: int) -> None:
        """`own_B`: the class (global id) that each sample must not have among its hardest; -1 is no sample, which gets none."""
        self.k, self._own_B, self._is_padding_B = k, own_B, own_B < 0
        self._key_BK = torch.full((len(own_B), k), NONE, device=own_B.device)
        self._floor_B = torch.full((len(own_B),), -torch.inf, device=own_B.device).masked_fill_(self._is_padding_B, torch.inf)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._num_waiting = 0
        self._is_full = False

    def offer(self, score_CB: Tensor, first: int, scale: float, slack: float, exact: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Scores times `scale`, each off by at most `slack` (unscaled), of the classes first .. first + C.
        `exact(column_T, sample_T)` gives the scores that are ranked."""
        C, B = score_CB.shape
        whole = C // GROUP * GROUP
        maximum_GB = score_CB[:whole].view(-1, GROUP, B).amax(1)
        if whole < C:
            maximum_GB = torch.cat([maximum_GB, score_CB[whole:].amax(0, keepdim=True)])
        floor_B = self._floor_B
        if not self._is_full and len(maximum_GB) > self.k:
            # k + 1 groups reach it, and the own class is the maximum of one of them at most.
            reached_B = maximum_GB.float().topk(self.k + 1, dim=0).values[-1] / scale - slack
            floor_B = torch.maximum(floor_B, reached_B)
        floor_B = ((floor_B - slack) * scale).to(score_CB.dtype)
        if score_CB.dtype != torch.float32:  # rounded down: to the next number below
            floor_B = floor_B - floor_B.abs() * torch.finfo(score_CB.dtype).eps
        group_T, sample_T = (maximum_GB >= floor_B).nonzero(as_tuple=True)
        column_T, sample_T = self._open(score_CB, group_T, sample_T, floor_B)
        is_other_T = column_T + first != self._own_B[sample_T]
        column_T, sample_T = column_T[is_other_T], sample_T[is_other_T]
        value_T = exact(column_T, sample_T)
        # Later classes lose a tie, so that a score equal to the K-th best is none.
        better_T = value_T > self._floor_B[sample_T]
        self._waiting.append((sample_T[better_T], make_keys(value_T[better_T], column_T[better_T] + first)))
        self._num_waiting += len(better_T)
        if not self._is_full or self._num_waiting > len(self._key_BK) * max(16, self.k // 2):
            self._merge()

    def keys(self) -> Tensor:
        """[B, K], descending; NONE where fewer classes were offered."""
        self._merge()
        return self._key_BK

    @staticmethod
    def _open(score_CB: Tensor, group_T: Tensor, sample_T: Tensor, floor_B: Tensor) -> tuple[Tensor, Tensor]:
        """The columns and samples of the scores that reach the floor, in these groups."""
        column_TG = group_T[:, None] * GROUP + torch.arange(GROUP, device=group_T.device)
        inside_TG = column_TG < len(score_CB)
        score_TG = score_CB[column_TG.clamp_max(len(score_CB) - 1), sample_T[:, None]]
        hit_TG = (score_TG >= floor_B[sample_T][:, None]) & inside_TG
        at_T, offset_T = hit_TG.nonzero(as_tuple=True)
        return column_TG[at_T, offset_T], sample_T[at_T]

    def _merge(self) -> None:
        if not self._num_waiting:
            return
        sample_T = torch.cat([sample for sample, _ in self._waiting])
        key_T = torch.cat([key for _, key in self._waiting])
        self._waiting, self._num_waiting = [], 0
        if len(sample_T):
            B = len(self._key_BK)
            sample_T, order_T = sample_T.sort(stable=True)
            count_B = torch.bincount(sample_T, minlength=B)
            place_T = torch.arange(len(sample_T), device=sample_T.device) - (count_B.cumsum(0) - count_B)[sample_T]
            key_BM = self._key_BK.new_full((B, self.k + int(count_B.max())), NONE)
            key_BM[:, : self.k] = self._key_BK
            key_BM[sample_T, self.k + place_T] = key_T[order_T]
            self._key_BK = merge_keys(key_BM, self.k)
        last_B = self._key_BK[:, -1]
        self._floor_B = key_scores(last_B).masked_fill_(self._is_padding_B, torch.inf)
        self._is_full = bool(((last_B != NONE) | self._is_padding_B).all())
