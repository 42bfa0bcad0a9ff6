"""kNN accuracy of backbone features, before the projector. The only module that reads labels; the loss never sees them.

Protocol (DINO's): cosine similarity, the k nearest vote with weight exp(cosine / T). Legend: M bank, Q queries, F features,
k neighbours, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from service.sections import Evaluation
from service.spec import RunSpec
from trainer.data.images import Images, index_images
from trainer.data.index import evenly_spaced
from trainer.data.loader import iterate_images, normalise
from trainer.errors import BadData
from trainer.watch import Watch

QUERY_EVERY = 5
"""Without a folder of queries, every fifth labelled image is one."""

SCORES_AT_A_TIME = 2**24
"""Similarities held at a time: 64 MiB."""

BATCH_SIZE = 256

PIXEL_SIZE = 32
"""Side of the images whose raw pixels are compared; at 224 pixels a bank of 50,000 would take 30 GB."""


@dataclass(frozen=True)
class LabelledSet:
    """Images with the index of their class in `class_names`."""

    images: Images
    labels: list[int]
    class_names: list[str]

    def select(self, indices: Sequence[int]) -> LabelledSet:
        return LabelledSet(self.images.select(indices), [self.labels[i] for i in indices], self.class_names)

    def limited(self, limit: int) -> LabelledSet:
        return self.select(evenly_spaced(len(self.labels), limit))


def load_labelled(evaluation: Evaluation, directory: Path) -> tuple[LabelledSet, LabelledSet]:
    """(bank, queries), by indices below `directory`, which are made where they are not there yet.

    Raises BadData where a folder is no labelled one, or the queries have classes that the bank lacks."""
    assert evaluation.labelled is not None
    everything = _read_classes(evaluation.labelled, "evaluation.labelled", directory / "labelled")
    if evaluation.queries is not None:
        bank, queries = everything, _read_classes(evaluation.queries, "evaluation.queries", directory / "queries")
        if unknown := sorted(set(queries.class_names) - set(bank.class_names)):
            raise BadData(
                f"evaluation.queries has the classes {', '.join(unknown)}, which evaluation.labelled ({', '.join(bank.class_names)}) "
                "lacks: both need the same sub-folders"
            )
        labels = [bank.class_names.index(queries.class_names[label]) for label in queries.labels]
        queries = LabelledSet(queries.images, labels, bank.class_names)
    else:
        is_query = [i % QUERY_EVERY == QUERY_EVERY - 1 for i in range(len(everything.labels))]
        bank = everything.select([i for i, query in enumerate(is_query) if not query])
        queries = everything.select([i for i, query in enumerate(is_query) if query])
        if not queries.labels:
            raise BadData(f"evaluation.labelled {evaluation.labelled!r} holds {len(bank.labels)} images: it takes at least {QUERY_EVERY}")
    return bank.limited(evaluation.limit), queries.limited(evaluation.limit)


def _read_classes(path: str, field: str, directory: Path) -> LabelledSet:
    images = index_images(path, directory)
    index = images.index
    if index.label_n is None:
        loose = next((name for name in map(images.name, range(len(images))) if "/" not in name), images.name(0))
        raise BadData(f"{field} {path!r} holds {loose!r} outside any sub-folder: it takes one sub-folder of images per class, or labels")
    label_n = index.label_n[images.rows(range(len(images)))]
    if (label_n < 0).any():
        raise BadData(f"{field} {path!r} holds {images.name(int((label_n < 0).argmax()))!r}, which has no label: give it one, or remove it")
    if len(index.label_names) < 2:
        raise BadData(f"{field} {path!r} holds one class, {index.label_names[0]!r}: it takes a sub-folder for each of at least 2")
    return LabelledSet(images, label_n.tolist(), index.label_names)


def evaluate_knn(
    backbone: nn.Module,
    spec: RunSpec,
    sets: tuple[LabelledSet, LabelledSet],
    device: torch.device,
    watch: Watch | None = None,
    unreadable: dict[str, str] | None = None,
) -> float:
    """kNN accuracy in percent, the same on every rank; every rank calls, and computes its share of features and of votes.

    `unreadable` takes the name and cause of images, of any rank, that a grey one stands for.
    Raises StopAgreed between batches: the evaluation is abandoned.
    """
    bank, queries = sets
    bank_MF = extract_features(backbone, bank.images, spec, device, watch, unreadable)
    query_QF = extract_features(backbone, queries.images, spec, device, watch, unreadable)
    rank, world_size = _rank_and_world_size()
    mine = slice(rank, None, world_size)
    labels = torch.tensor(queries.labels)
    correct = _count_correct(
        bank_MF, torch.tensor(bank.labels), query_QF[mine], labels[mine], spec.evaluation.k, spec.evaluation.temperature, watch
    )
    total = torch.tensor(correct, device=device)
    if world_size > 1:
        dist.all_reduce(total)
    return 100 * total.item() / len(labels)


def pixel_knn(sets: tuple[LabelledSet, LabelledSet], spec: RunSpec, watch: Watch | None = None) -> float:
    """kNN accuracy of the normalised pixels themselves, in percent: what a backbone must beat. One rank computes it alone."""
    size = min(spec.data.image_size, PIXEL_SIZE)

    def pixels(labelled: LabelledSet) -> Tensor:
        batches = iterate_images(labelled.images, range(len(labelled.images)), spec, size, BATCH_SIZE, spec.data.num_workers or 0)
        features = []
        for views, _ in batches:
            features.append(normalise(views, spec.data.mean, spec.data.std).flatten(1))
            if watch is not None:
                watch.beat()
        return torch.cat(features)

    bank, queries = sets
    k, temperature = spec.evaluation.k, spec.evaluation.temperature
    query_labels = torch.tensor(queries.labels)
    correct = _count_correct(pixels(bank), torch.tensor(bank.labels), pixels(queries), query_labels, k, temperature, watch)
    return 100 * correct / len(query_labels)


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    images: Images,
    spec: RunSpec,
    device: torch.device,
    watch: Watch | None = None,
    unreadable: dict[str, str] | None = None,
) -> Tensor:
    """Features of all images under the backbone in evaluation mode, [len(images), F] float32 on the CPU, on every rank.

    Every rank calls, and runs the same number of batches on as many images as every other: under ZeRO-3 the forward pass
    gathers parameters from all ranks, so that a rank with a batch less would leave the others waiting.
    """
    rank, world_size = _rank_and_world_size()
    share = -(-len(images) // world_size)
    mine = [min(i, len(images) - 1) for i in range(rank * share, (rank + 1) * share)]  # the last image fills the last shares
    dtype = next((parameter.dtype for parameter in backbone.parameters()), torch.float32)
    was_training = backbone.training
    backbone.eval()
    features = []
    found: dict[str, str] = {}
    for pixels, bad in iterate_images(images, mine, spec, spec.data.image_size, BATCH_SIZE, spec.data.num_workers or 0):
        found |= {images.index.full_name(image.row): image.cause for image in bad}
        inputs = normalise(pixels.to(device), spec.data.mean, spec.data.std).to(dtype)
        features.append(backbone(inputs).float())
        if watch is not None:
            watch.batch()
    backbone.train(was_training)
    local_nF = torch.cat(features).contiguous()
    if unreadable is not None:
        unreadable |= _of_all_ranks(found, world_size)
    if world_size == 1:
        return local_nF.cpu()
    gathered = [torch.empty_like(local_nF) for _ in range(world_size)]
    dist.all_gather(gathered, local_nF)
    return torch.cat(gathered)[: len(images)].cpu()


def _of_all_ranks(found: dict[str, str], world_size: int) -> dict[str, str]:
    gathered = [found]
    if world_size > 1:
        gathered = [{} for _ in range(world_size)]
        dist.all_gather_object(gathered, found)
    return {name: cause for of_rank in gathered for name, cause in of_rank.items()}


def knn_accuracy(bank_MF: Tensor, bank_labels_M: Tensor, query_QF: Tensor, query_labels_Q: Tensor, k: int, temperature: float) -> float:
    """Share of the queries, in percent, whose class wins the vote of the k nearest (all M where k is larger).

    Of neighbours at the same similarity those that stand first in the bank vote; of classes with the same vote the first wins.
    """
    correct = _count_correct(bank_MF, bank_labels_M, query_QF, query_labels_Q, k, temperature)
    return 100 * correct / len(query_labels_Q)


def _count_correct(
    bank_MF: Tensor,
    bank_labels_M: Tensor,
    query_QF: Tensor,
    query_labels_Q: Tensor,
    k: int,
    temperature: float,
    watch: Watch | None = None,
) -> int:
    k = min(k, len(bank_MF))
    num_classes = int(torch.cat([bank_labels_M, query_labels_Q]).max()) + 1
    bank_MF = F.normalize(bank_MF.float(), dim=1)
    correct = 0
    chunk = max(1, SCORES_AT_A_TIME // len(bank_MF))
    for query_qF, label_q in zip(query_QF.split(chunk), query_labels_Q.split(chunk), strict=True):
        score_qM = F.normalize(query_qF.float(), dim=1) @ bank_MF.T
        score_qk, index_qk = _first_topk(score_qM, k)
        # Relative to the nearest: the same winner, and no overflow at a small temperature.
        weight_qk = ((score_qk - score_qk[:, :1]) / temperature).exp()
        vote_qC = weight_qk.new_zeros(len(label_q), num_classes).scatter_add_(1, bank_labels_M[index_qk], weight_qk)
        correct += int((vote_qC.argmax(1) == label_q).sum())
        if watch is not None:
            watch.beat()
    return correct


def _first_topk(score_qM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row and their indices, in falling order; of equal ones the lowest indices (torch.topk takes any)."""
    score_qk, index_qk = score_qM.topk(k, dim=1)
    lowest_q1 = score_qk[:, -1:]
    is_last_qk = score_qk == lowest_q1
    ambiguous = ((score_qM == lowest_q1).sum(1) > is_last_qk.sum(1)).nonzero().flatten()
    if len(ambiguous):  # many where features nearly agree, as a random encoder's: float32 has few values close to 1
        equal_aM, is_last_ak = score_qM[ambiguous] == lowest_q1[ambiguous], is_last_qk[ambiguous]
        first_aM = equal_aM & (equal_aM.cumsum(1, dtype=torch.int32) <= is_last_ak.sum(1, keepdim=True))
        index_ak = index_qk[ambiguous]
        index_ak[is_last_ak] = first_aM.nonzero()[:, 1]
        index_qk[ambiguous] = index_ak
    return score_qk, index_qk


def _rank_and_world_size() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
