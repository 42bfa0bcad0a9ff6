"""BatchNorm over two gloo processes against PyTorch's own in one process on both parts of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.spec import RunSpec
from tests.distributed.launch import on_ranks
from trainer.encoder import build_encoder
from trainer.sync_batch_norm import SyncBatchNorm, synchronise_batch_norm
from trainer.torchvision_shim import import_timm

STEPS = 3


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = import_timm().layers
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        layers.BatchNormAct2d(5, momentum=0.3),
        nn.Flatten(),
        nn.Linear(5 * 16, 7),
        nn.BatchNorm1d(7, affine=False),
        nn.Linear(7, 2),
    ).double()


def batches(sizes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(sum(sizes), 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def train(model: nn.Module, inputs: list[Tensor]) -> dict[str, Any]:
    """Outputs, gradients of the sum of a function of the outputs, and the state after it."""
    outputs, input_gradients = [], []
    for x in inputs:
        x = x.clone().requires_grad_()
        y = model(x)
        (y.sin() * torch.arange(1.0, 3.0)).sum().backward()
        outputs.append(y.detach())
        input_gradients.append(x.grad)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"outputs": outputs, "input_gradients": input_gradients, "gradients": gradients, "state": model.state_dict()}


SIZES = {"even": (4, 4), "uneven": (5, 2)}


def on_one_rank() -> dict[str, Any]:
    """All that the tests compare, in one go: starting processes is what takes the time."""
    rank = torch.distributed.get_rank()
    results: dict[str, Any] = {}
    for name, sizes in SIZES.items():
        model = synchronise_batch_norm(network())
        assert sum(isinstance(module, SyncBatchNorm) for module in model.modules()) == 3
        results[name] = train(model, [x.split(sizes)[rank] for x in batches(sizes)])
    results["far"] = synchronise_batch_norm(nn.BatchNorm2d(3))(far_from_zero().split(4)[rank]).detach()
    norm = synchronise_batch_norm(nn.BatchNorm2d(3).double())
    x = batches((6, 0))[0].split((6, 0))[rank].requires_grad_()
    norm(x).sum().backward()
    results["mean with an empty rank"] = norm.running_mean
    return results


def far_from_zero() -> Tensor:
    return 1000 + 0.1 * batches((4, 4))[0].float()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), on_one_rank)


@pytest.mark.distributed
@pytest.mark.parametrize("name", SIZES)
def test_two_ranks_normalise_as_one_does_on_the_joint_batch(ranks: list[dict[str, Any]], name: str) -> None:
    """Outputs, gradients of inputs and weights and running statistics agree, also for uneven parts and timm's BatchNormAct2d."""
    oracle = train(network(), batches(SIZES[name]))
    results = [rank[name] for rank in ranks]
    for key in ("outputs", "input_gradients"):
        for step in range(STEPS):
            torch.testing.assert_close(torch.cat([result[key][step] for result in results]), oracle[key][step])
    for parameter, expected in oracle["gradients"].items():
        torch.testing.assert_close(results[0]["gradients"][parameter] + results[1]["gradients"][parameter], expected)
    for result in results:
        assert result["state"].keys() == oracle["state"].keys()
        for tensor, expected in oracle["state"].items():
            torch.testing.assert_close(result["state"][tensor], expected)


@pytest.mark.distributed
def test_a_mean_far_from_zero_costs_no_precision(ranks: list[dict[str, Any]]) -> None:
    """In float32, 1000 +- 0.1: a variance as E[x^2] - E[x]^2 would be noise."""
    torch.testing.assert_close(torch.cat([rank["far"] for rank in ranks]), nn.BatchNorm2d(3)(far_from_zero()), rtol=0, atol=0.01)


@pytest.mark.distributed
def test_a_rank_without_images_neither_fails_nor_changes_the_statistics(ranks: list[dict[str, Any]]) -> None:
    """An epoch's steps may be smaller than the number of ranks."""
    for rank in ranks:
        torch.testing.assert_close(rank["mean with an empty rank"], batches((6, 0))[0].mean((0, 2, 3)) * 0.1)


def test_without_other_ranks_or_in_evaluation_it_is_plain_batch_norm() -> None:
    """So that exporting, evaluating and a single rank need no second kind of model."""
    plain, ours = network(), synchronise_batch_norm(network())
    x = batches((4,))[0]
    assert torch.equal(plain(x), ours(x))
    assert torch.equal(plain.eval()(x), ours.eval()(x))


def test_an_encoder_is_synchronised_where_the_specification_says_so() -> None:
    """Every BatchNorm of the backbone, under the names that it had."""
    document = {
        "data": {"path": "/images", "image_size": 32},
        "schedule": {"epochs": 1},
        "backbone": {"name": "mobilenetv3_small_050", "batch_norm": "synchronised"},
        "resources": {"device": "cpu", "ranks_per_node": 2},
    }
    encoder = build_encoder(RunSpec.model_validate(document))
    norms = [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 10
    assert all(isinstance(module, SyncBatchNorm) for module in norms)
    per_rank = document | {"backbone": {"name": "mobilenetv3_small_050"}}
    assert build_encoder(RunSpec.model_validate(per_rank)).state_dict().keys() == encoder.state_dict().keys()
