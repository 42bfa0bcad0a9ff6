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


def move_keys(key: Tensor, by: int) -> Tensor:
    """The keys of the same scores where every class has an id greater by `by`."""
    return (key - by).masked_fill(key == NONE, NONE)


def merge_keys(key_BM: Tensor, k: int) -> Tensor:
    """[B, k]: the greatest of M keys each, descending; NONE where there are fewer."""
    if key_BM.shape[1] < k:
        key_BM = torch.nn.functional.pad(key_BM, (0, k - key_BM.shape[1]), value=NONE)
    return key_BM.topk(k, dim=1).values


class HardestClasses:
    """The `k` hardest classes of each of B samples among those offered, chunk by chunk in ascending order of classes.

    `exact(class_T, sample_T)` gives the scores that are ranked, of single classes (as they are offered) and samples. `slack` is how far
    an offered score can be from it; scores are offered times `scale`.
    """

    def __init__(self, own_B: Tensor, k: int, exact: Callable[[Tensor, Tensor], Tensor], scale: float, slack: float) -> None:
        """`own_B`: the class that each sample must not have among its hardest; negative is no class, and -1 is no sample: it gets none."""
        self.k, self._exact, self._scale, self._slack = k, exact, scale, slack
        self._own_B, self._is_padding_B = own_B, own_B == -1
        self._key_BK = torch.full((len(own_B), k), NONE, device=own_B.device)
        self._floor_B = torch.full((len(own_B),), -torch.inf, device=own_B.device)
        self._is_full = False
        # Classes and samples that reached the floor. One block of memory: many small ones would keep the heap from shrinking (LOG.md).
        self._waiting = torch.empty(2, len(own_B) * max(16, k // 2), dtype=torch.int64, device=own_B.device)
        self._num_waiting = 0

    def offer(self, score_CB: Tensor, first: int) -> None:
        """Scores of the classes first .. first + C."""
        C, B = score_CB.shape
        whole = C // GROUP * GROUP
        maximum_GB = score_CB[:whole].view(-1, GROUP, B).amax(1)
        if whole < C:
            maximum_GB = torch.cat([maximum_GB, score_CB[whole:].amax(0, keepdim=True)])
        floor_B = self._floor_B
        if not self._is_full and self.k < C:
            # k + 1 groups (or, of few groups, classes) reach it, and the own class is in one of them at most.
            highest_MB = maximum_GB if len(maximum_GB) > self.k else score_CB
            reached_B = highest_MB.float().topk(self.k + 1, dim=0).values[-1] / self._scale - self._slack
            floor_B = torch.maximum(floor_B, reached_B)
        bar_B = self._bar(floor_B, score_CB.dtype)
        group_T, sample_T = (maximum_GB >= bar_B).nonzero(as_tuple=True)
        if not len(group_T):
            return
        column_T, sample_T = _open(score_CB, group_T, sample_T, bar_B)
        self._wait(column_T + first, sample_T)
        if not self._is_full:
            self.settle()

    def keys(self) -> Tensor:
        """[B, K], descending; NONE where fewer classes were offered."""
        self.settle()
        return self._key_BK

    def settle(self) -> None:
        """Rank what waits; `exact` is called here alone."""
        if self._num_waiting:
            self._rank(*self._waiting[:, : self._num_waiting])
            self._num_waiting = 0

    def _wait(self, class_T: Tensor, sample_T: Tensor) -> None:
        """Be ranked at the next `settle`, or now where there is no room."""
        if self._num_waiting + len(class_T) > self._waiting.shape[1]:
            self.settle()
        if len(class_T) > self._waiting.shape[1]:
            self._rank(class_T, sample_T)
            return
        now = slice(self._num_waiting, self._num_waiting + len(class_T))
        self._waiting[0, now], self._waiting[1, now] = class_T, sample_T
        self._num_waiting = now.stop

    def _rank(self, class_T: Tensor, sample_T: Tensor) -> None:
        is_other_T = class_T != self._own_B[sample_T]
        class_T, sample_T = class_T[is_other_T], sample_T[is_other_T]
        score_T = self._exact(class_T, sample_T)
        # Later classes lose a tie, so that a score equal to the K-th best is none.
        better_T = score_T > self._floor_B[sample_T]
        sample_T, key_T = sample_T[better_T], make_keys(score_T[better_T], class_T[better_T])
        if not len(sample_T):
            return
        sample_T, order_T = sample_T.sort(stable=True)
        count_B = torch.bincount(sample_T, minlength=len(self._key_BK))
        place_T = torch.arange(len(sample_T), device=sample_T.device) - (count_B.cumsum(0) - count_B)[sample_T]
        key_BM = torch.nn.functional.pad(self._key_BK, (0, int(count_B.max())), value=NONE)
        key_BM[sample_T, self.k + place_T] = key_T[order_T]
        self._key_BK.copy_(merge_keys(key_BM, self.k))
        last_B = self._key_BK[:, -1]
        self._floor_B = key_scores(last_B)
        self._is_full = bool(((last_B != NONE) | self._is_padding_B).all())

    def _bar(self, floor_B: Tensor, dtype: torch.dtype) -> Tensor:
        """What an offered score must reach, so that none is missed whose exact score is above the floor."""
        bar_B = ((floor_B - self._slack) * self._scale).masked_fill_(self._is_padding_B, torch.inf)
        # Rounded down, where the dtype is coarse.
        return bar_B if dtype == torch.float32 else (bar_B - bar_B.abs() * torch.finfo(dtype).eps).nan_to_num_(nan=torch.inf).to(dtype)


def _open(score_CB: Tensor, group_T: Tensor, sample_T: Tensor, bar_B: Tensor) -> tuple[Tensor, Tensor]:
    """The columns and samples of the scores that reach the bar, in these groups."""
    column_TG = group_T[:, None] * GROUP + torch.arange(GROUP, device=group_T.device)
    if len(score_CB) % GROUP:  # of a last group with fewer, the last column stands for those that are missing
        column_TG.clamp_(max=len(score_CB) - 1)
    at_T, offset_T = (score_CB[column_TG, sample_T[:, None]] >= bar_B[sample_T][:, None]).nonzero(as_tuple=True)
    if len(score_CB) % GROUP:
        is_there_T = group_T[at_T] * GROUP + offset_T < len(score_CB)
        at_T, offset_T = at_T[is_there_T], offset_T[is_there_T]
    return column_TG[at_T, offset_T], sample_T[at_T]
