"""kNN accuracy and labelled folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from service.sections import Evaluation
from service.spec import RunSpec
from tests.images import indexed, noise, noise_folder, write_image
from trainer import evaluate
from trainer.data.augment import evaluation_view
from trainer.data.loader import normalise
from trainer.data.reader import Reader, read_pixels
from trainer.errors import BadData
from trainer.evaluate import LabelledSet, evaluate_knn, extract_features, knn_accuracy, load_labelled, pixel_knn

CPU = torch.device("cpu")


def make_spec(**evaluation: Any) -> RunSpec:
    return RunSpec.model_validate({"data": {"path": "/images", "image_size": 16}, "schedule": {"epochs": 1}, "evaluation": evaluation})


def clusters(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping clusters, so that the accuracy is neither 0 nor 100."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (num,), generator=generator)
    centres = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    return centres[labels] + 1.3 * torch.randn(num, 8, generator=generator), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.1), (20, 0.001), (20, 10.0)])
def test_the_vote_is_that_of_scikit_learn_with_the_same_weights(k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: brute-force cosine neighbours with weights exp((cosine - 1) / T); several chunks of queries."""
    monkeypatch.setattr(evaluate, "SCORES_AT_A_TIME", 300 * 64)
    (bank, bank_labels), (queries, query_labels) = clusters(300, 1), clusters(200, 2)
    oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-(d - d[:, :1]) / temperature))
    expected = 100 * oracle.fit(bank.numpy(), bank_labels.numpy()).score(queries.numpy(), query_labels.numpy())
    assert 20 < expected < 95
    assert knn_accuracy(bank, bank_labels, queries, query_labels, k, temperature) == pytest.approx(expected)


def test_more_neighbours_than_the_bank_holds_are_all_of_them() -> None:
    """A small labelled folder is no error."""
    bank, labels = clusters(7, 1)
    queries, query_labels = clusters(50, 2)
    most = knn_accuracy(bank, labels, queries, query_labels, 7, 0.1)
    assert knn_accuracy(bank, labels, queries, query_labels, 200, 0.1) == most


def test_of_equally_near_neighbours_the_first_in_the_bank_vote() -> None:
    """Oracle: a stable sort. 2,000 entries point in three directions, so that ties abound at the k-th place."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(3) + 0.3
    bank = directions[torch.randint(0, 3, (2000,), generator=generator)]
    labels = torch.randint(0, 50, (2000,), generator=generator)
    scores = F.normalize(directions, dim=1) @ F.normalize(bank, dim=1).T
    for k in (1, 30, 700, 1500):
        nearest = scores.sort(dim=1, descending=True, stable=True)
        weights = ((nearest.values[:, :k] - nearest.values[:, :1]) / 0.5).exp()
        votes = torch.zeros(3, 50).scatter_add(1, labels[nearest.indices[:, :k]], weights)
        assert knn_accuracy(bank, labels, directions, votes.argmax(1), k, 0.5) == 100


def labelled_folder(root: Path, classes: dict[str, int]) -> Path:
    """Per class this many images: noise around the class's own colour."""
    for c, (name, number) in enumerate(sorted(classes.items())):
        for i in range(number):
            pixels = noise(100 * c + i, 16, 16) // 3 + np.array([60, 90, 120], np.uint8) * (c % 2) + 20
            write_image(root / name / f"{i:02d}.png", pixels.astype(np.uint8))
    return root


def names(labelled: LabelledSet) -> list[str]:
    return [labelled.images.name(i) for i in range(len(labelled.images))]


def test_every_fifth_image_is_a_query_where_no_folder_of_queries_is_given(tmp_path: Path) -> None:
    """Of each class about a fifth, since paths sort by class; bank and queries share nothing."""
    bank, queries = load_labelled(Evaluation(labelled=str(labelled_folder(tmp_path, {"cat": 10, "dog": 15}))), tmp_path / ".index")
    assert names(queries) == ["cat/04.png", "cat/09.png", "dog/04.png", "dog/09.png", "dog/14.png"]
    assert queries.labels == [0, 0, 1, 1, 1]
    assert len(bank.labels) == 20
    assert not set(names(bank)) & set(names(queries))
    assert bank.class_names == queries.class_names == ["cat", "dog"]


def test_labels_of_a_query_folder_are_the_banks_numbers(tmp_path: Path) -> None:
    """The queries may lack a class, which must not shift the others; the limit takes evenly spaced images of each set."""
    labelled = labelled_folder(tmp_path / "bank", {"cat": 4, "dog": 4, "emu": 4})
    queries = labelled_folder(tmp_path / "queries", {"cat": 1, "emu": 3})
    bank, asked = load_labelled(Evaluation(labelled=str(labelled), queries=str(queries), limit=6), tmp_path / ".index")
    assert asked.labels == [0, 2, 2, 2]
    assert names(bank) == ["cat/00.png", "cat/02.png", "dog/00.png", "dog/02.png", "emu/00.png", "emu/02.png"]
    assert bank.labels == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("bank", "queries", "message"),
    [
        ({"cat": 9}, None, "holds one class, 'cat': it takes a sub-folder for each of at least 2"),
        ({"cat": 2, "dog": 2}, None, "holds 4 images: it takes at least 5"),
        ({"cat": 9, ".": 1}, None, "holds '00.png' outside any sub-folder"),
        ({"cat": 3, "dog": 3}, {"cat": 1, "gnu": 1, "yak": 1}, "evaluation.queries has the classes gnu, yak, which evaluation.labelled"),
        ({"cat": 3, "dog": 3}, {"cat": 3}, "evaluation.queries"),
    ],
)
def test_a_folder_that_is_no_labelled_one_is_refused(
    tmp_path: Path, bank: dict[str, int], queries: dict[str, int] | None, message: str
) -> None:
    """The message names the field, what was found and what it takes."""
    paths = {"labelled": str(labelled_folder(tmp_path / "bank", bank))}
    if queries:
        paths["queries"] = str(labelled_folder(tmp_path / "queries", queries))
    with pytest.raises(BadData) as refused:
        load_labelled(Evaluation(**paths), tmp_path / ".index")
    assert message in str(refused.value)


def test_features_are_those_of_the_evaluation_views_in_the_order_of_the_folder(tmp_path: Path) -> None:
    """In evaluation mode without gradients, after which the backbone trains on as before."""
    spec = make_spec()
    images = indexed(noise_folder(tmp_path, 13))
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 14 * 14, 6))
    statistics = backbone[1].running_mean.clone()
    features = extract_features(backbone, images, spec, CPU)
    assert backbone.training
    assert all(module.training for module in backbone.modules())
    assert torch.equal(backbone[1].running_mean, statistics)
    assert not features.requires_grad
    reader = Reader(images.index)
    views = np.stack([evaluation_view(read_pixels(reader, i), 16) for i in range(13)])
    inputs = normalise(torch.from_numpy(views).permute(0, 3, 1, 2), spec.data.mean, spec.data.std)
    torch.testing.assert_close(features, backbone.eval()(inputs).detach())


def test_half_precision_backbones_are_given_half_precision_images(tmp_path: Path) -> None:
    """The features are float32 all the same."""
    images = indexed(noise_folder(tmp_path, 3))
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 6)).bfloat16()
    assert extract_features(backbone, images, make_spec(), CPU).dtype == torch.float32


def test_pixels_and_features_that_tell_the_classes_apart_score_100(tmp_path: Path) -> None:
    """And features that say nothing score what the first class's share of the queries is."""
    spec = make_spec(labelled=str(labelled_folder(tmp_path, {"cat": 20, "dog": 20})), k=3)
    sets = load_labelled(spec.evaluation, tmp_path / ".index")
    assert pixel_knn(sets, spec) == 100
    assert evaluate_knn(nn.Flatten(), spec, sets, CPU) == 100

    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 4)

    assert evaluate_knn(Blind(), spec, sets, CPU) == 50
