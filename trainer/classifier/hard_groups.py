"""The hardest classes where the scores are never in memory: of each group of classes only the maximum is, and groups are scored anew.

The contract is that of topk.HardestClasses: keys, total order, ranked by exact scores.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.classifier.topk import HardestClasses

OPENED = 1 << 22
"""Scores of opened groups that exist at a time: 16 MB, and their indices."""


class HardestGroups(HardestClasses):
    """HardestClasses that is offered maxima. No maximum is that of a sample's own class; scores are cosines (scale is 1)."""

    def offer_groups(self, maximum_GB: Tensor, size: int, first: int, scores: Callable[[Tensor, Tensor], Tensor]) -> None:
        """The highest score of each group of `size` classes: group g is first + g * size and those that follow. `scores` gives those of
        the classes of groups, of ascending number, and of samples [T, size]; -inf where a class is none. `exact` is called before this
        returns, and not later."""
        reached_B = torch.full_like(self._floor_B, -torch.inf)
        if not self._is_full and len(maximum_GB) >= self.k:
            reached_B = maximum_GB.topk(self.k, dim=0).values[-1] - self._slack
        group_T, sample_T = (maximum_GB >= self._bar_over(reached_B)).nonzero(as_tuple=True)
        pieces = max(1, OPENED // size)
        for group_t, sample_t in zip(group_T.split(pieces), sample_T.split(pieces), strict=True):
            score_tC = scores(group_t, sample_t)
            reaches_tC = score_tC >= self._bar_over(reached_B)[sample_t][:, None]
            at_T, column_T = (reaches_tC & (score_tC > -torch.inf)).nonzero(as_tuple=True)
            self._wait(first + group_t[at_T] * size + column_T, sample_t[at_T])
            self.settle()

    def _bar_over(self, floor_B: Tensor) -> Tensor:
        return self._bar(torch.maximum(self._floor_B, floor_B), torch.float32)
