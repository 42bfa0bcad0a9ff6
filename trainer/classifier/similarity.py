"""The hardest classes by class similarity: of each class, the K classes whose rows are nearest, cos(w_i, w_j).

Found over all ranks block by block, every refresh_epochs: beside the table, a unit-norm copy of the own rows and one block.
"""

from __future__ import annotations

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainer.classifier.loss import merge_top_k
from trainer.classifier.shard import Shard
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.zero3 import Zero3Classifier
from trainer.watch import Watch

BLOCK = 4096  # rows that travel, and that are scored, at a time


@torch.no_grad()
def refresh_hardest(classifier: ShardedClassifier | Zero3Classifier, watch: Watch | None = None) -> None:
    """Search anew; the classifier uses the result until the next call. Every rank calls."""
    K = classifier.targets.num_hardest
    if isinstance(classifier, ShardedClassifier):
        classifier.hardest_nK = nearest_classes(classifier.rows_nD, classifier.shard, K, watch)
    else:
        with deepspeed.zero.GatheredParameters([classifier.rows_ND]):
            rows_ND = classifier.rows_ND.detach().float().clone()
        classifier.hardest_NK = nearest_classes(rows_ND, Shard(len(rows_ND), 0, 1), K, watch)


def keeps_hardest(classifier: ShardedClassifier | Zero3Classifier, wanted: bool) -> bool:
    """Whether the classifier has a table that it is to use. One that it is not to use, or of another K, is dropped: a checkpoint
    of a run with other targets may have brought it."""
    name = "hardest_nK" if isinstance(classifier, ShardedClassifier) else "hardest_NK"
    table = getattr(classifier, name)
    if wanted and table is not None and table.shape[1] == classifier.targets.num_hardest:
        return True
    setattr(classifier, name, None)
    return False


def nearest_classes(rows_nD: Tensor, shard: Shard, k: int, watch: Watch | None = None) -> Tensor:
    """[n, K] int32: of each own class, the global ids of the k nearest other classes, nearest first."""
    n, D = rows_nD.shape
    own_nD = F.normalize(rows_nD, dim=1)
    value_nK = rows_nD.new_full((n, k), -torch.inf)
    class_nK = torch.full((n, k), -1, device=rows_nD.device)
    for source in range(shard.world_size):
        theirs = shard.of(source)
        for first in range(theirs.start, theirs.stop, BLOCK):
            size = min(BLOCK, theirs.stop - first)
            at = first - theirs.start
            block_CD = own_nD[at : at + size].contiguous() if source == shard.rank else own_nD.new_empty(size, D)
            if shard.world_size > 1:
                dist.broadcast(block_CD, src=source)
            for low in range(0, n, BLOCK):
                rows = slice(low, min(low + BLOCK, n))
                score_qC = own_nD[rows] @ block_CD.T
                if source == shard.rank:  # the class itself: global ids first .. on the columns, start + low .. on the rows
                    score_qC.diagonal(offset=shard.start + low - first).fill_(-torch.inf)
                value_qK, column_qK = score_qC.topk(min(k, size), dim=1)
                value_nK[rows], class_nK[rows] = merge_top_k(
                    torch.cat([value_nK[rows], value_qK], 1), torch.cat([class_nK[rows], column_qK + first], 1), k
                )
                if watch is not None:
                    watch.beat()
    return class_nK.to(torch.int32)
