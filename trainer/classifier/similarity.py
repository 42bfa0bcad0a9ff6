"""The hardest classes by class similarity: of each class, the K classes whose rows are nearest, cos(w_i, w_j).

Found over all ranks block by block, every refresh_epochs. Beside the table, memory is that of the blocks and of the keys of QUERIES
rows: each rank's rows travel once for every QUERIES rows of the largest shard.
"""

from __future__ import annotations

from collections.abc import Iterator

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainer.classifier.shard import Shard
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.targets import score_pairs
from trainer.classifier.topk import HardestClasses, key_classes
from trainer.classifier.zero3 import Zero3Classifier
from trainer.watch import Watch

BLOCK = 4096  # rows that travel, and that are scored, at a time
QUERIES = 262_144  # own rows whose nearest are sought at a time


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
    """[n, K] int32: of each own class, the global ids of the k nearest other classes, nearest first. Every rank calls."""
    table_nK = torch.full((len(rows_nD), k), -1, dtype=torch.int32, device=rows_nD.device)
    for first in range(0, max(len(shard.of(rank)) for rank in range(shard.world_size)), QUERIES):
        queries = range(first, max(first, min(first + QUERIES, len(rows_nD))))
        table_nK[queries.start : queries.stop] = _nearest(rows_nD, shard, queries, k, watch)
    return table_nK


def _nearest(rows_nD: Tensor, shard: Shard, queries: range, k: int, watch: Watch | None) -> Tensor:
    """[len(queries), K] int32 for these own rows. Every rank calls."""
    slack = (rows_nD.shape[1] + 8) * 2.0**-23
    asked = []
    for low in range(queries.start, queries.stop, BLOCK):
        at = slice(low, min(low + BLOCK, queries.stop))
        own_q = torch.arange(shard.start + at.start, shard.start + at.stop, device=rows_nD.device)
        exact = _BlockScores(rows_nD[at])
        asked.append((exact, HardestClasses(own_q, k, exact, 1.0, slack)))
    for first, block_CD in _blocks(rows_nD, shard):
        unit_CD = F.normalize(block_CD, dim=1)
        for exact, hardest in asked:
            exact.first, exact.block_CD = first, block_CD
            hardest.offer(unit_CD @ F.normalize(exact.query_qD.float(), dim=1).T, first)
            hardest.settle()  # while the block is here
        if watch is not None:
            watch.beat()
    found = [key_classes(hardest.keys()).to(torch.int32) for _, hardest in asked]
    return torch.cat(found) if found else torch.empty(0, k, dtype=torch.int32, device=rows_nD.device)


class _BlockScores:
    """Scores of single classes of the present block and queries."""

    def __init__(self, query_qD: Tensor) -> None:
        self.query_qD = query_qD
        self.first, self.block_CD = 0, query_qD

    def __call__(self, class_T: Tensor, query_T: Tensor) -> Tensor:
        return score_pairs(self.block_CD, F.normalize(self.query_qD.float(), dim=1), class_T - self.first, query_T)


def _blocks(rows_nD: Tensor, shard: Shard) -> Iterator[tuple[int, Tensor]]:
    """(class of its first row, rows [C, D] fp32) of every block of every rank, in ascending order; the next one is on its way."""

    def send(source: int, first: int) -> tuple[Tensor, dist.Work | None]:
        theirs = shard.of(source)
        size, at = min(BLOCK, theirs.stop - first), first - theirs.start
        block_CD = (
            rows_nD[at : at + size].float() if source == shard.rank else rows_nD.new_empty(size, rows_nD.shape[1], dtype=torch.float32)
        )
        return block_CD, dist.broadcast(block_CD, src=source, async_op=True) if shard.world_size > 1 else None

    ranks = range(shard.world_size)
    starts = [(source, first) for source in ranks for first in range(shard.of(source).start, shard.of(source).stop, BLOCK)]
    coming = send(*starts[0]) if starts else None
    for number, (_, first) in enumerate(starts):
        assert coming is not None
        block_CD, work = coming
        coming = send(*starts[number + 1]) if number + 1 < len(starts) else None
        if work is not None:
            work.wait()
        yield first, block_CD
