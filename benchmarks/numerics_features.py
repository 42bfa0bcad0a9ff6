"""Features of CIFAR-10 for benchmarks.classifier_numerics: augmented views through a fixed random convolution, computed once.

The filters are random patches of the training images, normalised; two-sided ReLU and a mean over quadrants follow (Coates and Ng's
recipe without its whitening). Labels serve the kNN only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from service.data_sections import Augmentation
from service.sections import Evaluation
from trainer.data.augment import augment, view_rng
from trainer.data.reader import Reader, read_pixels
from trainer.evaluate import LabelledSet, load_labelled

SIZE, FILTERS, PATCH, BLOCK = 32, 96, 6, 500
AUGMENTATION = Augmentation(blur=0.0)


@dataclass(frozen=True)
class Features:
    """fp32, of mean 0 and deviation 1 over the training views in each of F dimensions."""

    view_VNF: Tensor
    """V augmented views of each of the N images that are the classes."""
    plain_NF: Tensor
    """The same images unaugmented: the prior's input and the kNN's bank."""
    query_QF: Tensor
    label_N: Tensor
    query_label_Q: Tensor


def load(data: Path, num_images: int, views: int, cache: Path | None) -> Features:
    """`data` holds train/CLASS/*.jpg and test/CLASS/*.jpg; `cache`: an .npz that is read if it is there, else written."""
    if cache is None or not cache.exists():
        arrays = _compute(data, num_images, views)
        if cache is not None:
            np.savez(cache, **{name: value.numpy() for name, value in arrays.items()})
    else:
        with np.load(cache, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return Features(**arrays)


def _compute(data: Path, num_images: int, views: int) -> dict[str, Tensor]:
    evaluation = Evaluation(labelled=str(data / "train"), queries=str(data / "test"), limit=num_images)
    with tempfile.TemporaryDirectory() as directory:
        bank, queries = load_labelled(evaluation, Path(directory))
        images, query_images = _read(bank), _read(queries)
    filters_FCHW = _filters(images)
    plain_NF, query_QF = _encode(images, filters_FCHW), _encode(query_images, filters_FCHW)
    view_VNF = torch.empty(views, *plain_NF.shape)
    for view in range(views):
        augmented = [augment(image, AUGMENTATION, SIZE, view_rng(0, 0, i, view)) for i, image in enumerate(images)]
        view_VNF[view] = _encode(augmented, filters_FCHW)
    mean_F, deviation_F = view_VNF.mean((0, 1)), view_VNF.flatten(0, 1).std(0)
    for value in (view_VNF, plain_NF, query_QF):
        value.sub_(mean_F).div_(deviation_F)
    labels = torch.tensor(bank.labels), torch.tensor(queries.labels)
    return {"view_VNF": view_VNF, "plain_NF": plain_NF, "query_QF": query_QF, "label_N": labels[0], "query_label_Q": labels[1]}


def _read(labelled: LabelledSet) -> list[np.ndarray]:
    reader = Reader(labelled.images.index)
    return [read_pixels(reader, int(row)) for row in labelled.images.rows(range(len(labelled.images)))]


def _pixels(images: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255 - 0.5


def _filters(images: Sequence[np.ndarray]) -> Tensor:
    """[F, 3, PATCH, PATCH], of mean 0 and unit norm."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(images), FILTERS, replace=False)
    tops, lefts = rng.integers(0, SIZE - PATCH + 1, (2, FILTERS))
    patches = [images[i][top : top + PATCH, left : left + PATCH] for i, top, left in zip(chosen, tops, lefts, strict=True)]
    filters = _pixels(patches)
    return F.normalize((filters - filters.mean((1, 2, 3), keepdim=True)).flatten(1), dim=1).view_as(filters)


def _encode(images: Sequence[np.ndarray], filters_FCHW: Tensor) -> Tensor:
    """[len(images), 8 FILTERS]."""
    features = []
    for start in range(0, len(images), BLOCK):
        response = F.conv2d(_pixels(images[start : start + BLOCK]), filters_FCHW, stride=2)
        both = torch.cat([F.relu(response), F.relu(-response)], 1)
        features.append(F.adaptive_avg_pool2d(both, 2).flatten(1))
    return torch.cat(features)
