"""The other heads of the classifier's benchmark, each as well as it can be used.

They take the temperature with the features (x / (|x| tau)), which spares them a pass over the scores.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.classifier_inputs import Problem
from trainer.classifier.oracle import DenseClassifier

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of features, rows and instances."""


class Unavailable(Exception):
    """Why a head cannot be measured here."""


class ByAutograd:
    """A parameter, a loss that autograd differentiates, and torch.optim.SGD with its momentum there from the start."""

    backend = "autograd"

    def __init__(self, problem: Problem, loss: LossFunction, rows_ND: nn.Parameter | None = None) -> None:
        if rows_ND is None:
            rows_ND = nn.Parameter(torch.empty(problem.classes, problem.embedding, device=problem.device))
        self.rows_ND, self._loss = rows_ND, loss
        self.momentum_ND = torch.zeros_like(rows_ND.data)
        self._optimizer = torch.optim.SGD([rows_ND], lr=problem.learning_rate, momentum=problem.momentum, weight_decay=problem.weight_decay)
        self._optimizer.state[rows_ND]["momentum_buffer"] = self.momentum_ND

    def step(self, x_BD: Tensor, instance_B: Tensor) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(x_BD, self.rows_ND, instance_B)
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class Smoothed(ByAutograd):
    def __init__(self, problem: Problem) -> None:
        oracle = DenseClassifier(torch.empty(problem.classes, problem.embedding, device=problem.device), problem.targets(True))
        super().__init__(problem, lambda x_BD, _, instance_B: oracle(x_BD, instance_B), oracle.rows_ND)


def scaled(problem: Problem, x_BD: Tensor) -> Tensor:
    return F.normalize(x_BD, dim=1) / problem.temperature


def logits(problem: Problem, x_BD: Tensor, rows_ND: Tensor, in_bf16: bool) -> Tensor:
    """[B, N] in fp32; of a product in bf16 as autocast has them."""
    x_BD, w_ND = scaled(problem, x_BD), F.normalize(rows_ND, dim=1)
    return (x_BD.bfloat16() @ w_ND.bfloat16().T).float() if in_bf16 else x_BD @ w_ND.T


def dense(problem: Problem, x_BD: Tensor, rows_ND: Tensor, instance_B: Tensor, in_bf16: bool = False) -> Tensor:
    return F.cross_entropy(logits(problem, x_BD, rows_ND, in_bf16), instance_B)


def dense_plain(problem: Problem, x_BD: Tensor, rows_ND: Tensor, instance_B: Tensor) -> Tensor:
    return F.cross_entropy(F.normalize(x_BD, dim=1) @ F.normalize(rows_ND, dim=1).T / problem.temperature, instance_B)


def dense_smoothed(problem: Problem, x_BD: Tensor, rows_ND: Tensor, instance_B: Tensor) -> Tensor:
    logit_BN = logits(problem, x_BD, rows_ND, False)
    alpha, K = problem.smoothing, problem.hardest_k
    # The own class may be one of the K + 1 highest: it is put last, then the last is dropped.
    highest = logit_BN.detach().topk(K + 1, dim=1)
    place_BK = highest.values.masked_fill(highest.indices == instance_B[:, None], -torch.inf).topk(K, dim=1).indices
    hardest_BK = highest.indices.gather(1, place_BK)
    target_B = (1 - alpha) * logit_BN.gather(1, instance_B[:, None])[:, 0] + alpha * logit_BN.gather(1, hardest_BK).mean(1)
    return (logit_BN.logsumexp(1) - target_B).mean()


def linear_cross_entropy(problem: Problem, auto: bool = False) -> LossFunction:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable(f"PyTorch {torch.__version__} has no F.linear_cross_entropy; 2.13 has it")
    options = nn.LinearCrossEntropyOptions()
    if not auto:
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=-(-problem.batch // 4), chunking_method=None)
    return lambda x_BD, rows_ND, instance_B: F.linear_cross_entropy(
        scaled(problem, x_BD), F.normalize(rows_ND, dim=1), instance_B, options=options
    )


def cut_cross_entropy(problem: Problem) -> LossFunction:
    function = _imported("cut_cross_entropy", "linear_cross_entropy", "cut-cross-entropy", problem)
    # Releases without the preset `cce_exact` take the filter's threshold itself.
    has_preset = "accum_c_fp32" in inspect.signature(function).parameters
    exact: dict[str, Any] = {"impl": "cce_exact"} if has_preset else {"impl": "cce", "filter_eps": None}
    return lambda x_BD, rows_ND, instance_B: function(
        scaled(problem, x_BD).bfloat16(), F.normalize(rows_ND, dim=1).bfloat16(), instance_B, **exact
    ).float()


def liger(problem: Problem, auto: bool = False) -> LossFunction:
    function = _imported("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy", "liger-kernel", problem)
    options: dict[str, Any] = {"accum_dtype": torch.float32}
    if not auto and "chunk_mem_const" in inspect.signature(function).parameters:
        options["chunk_mem_const"] = max(1, problem.classes // (4 * problem.embedding))
    return lambda x_BD, rows_ND, instance_B: function(
        scaled(problem, x_BD).bfloat16(), F.normalize(rows_ND, dim=1).bfloat16(), instance_B, **options
    )


def _imported(module: str, function: str, package: str, problem: Problem) -> Callable[..., Tensor]:
    if problem.device == "cpu":
        raise Unavailable("its kernels need a GPU")
    try:
        return getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise Unavailable(f"pip install {package} ({error})") from error


class PartialFC:
    """Positives and random negatives, `rate` N in all, are taken out with their momentum, trained and written back.

    As the published head: softmax in place of the scores, its gradient in place of the softmax. Only sampled rows decay and move.
    """

    backend = "autograd"

    def __init__(self, problem: Problem, rate: float, in_bf16: bool) -> None:
        self._problem, self._rate, self._in_bf16 = problem, rate, in_bf16
        self.rows_ND, self.momentum_ND = torch.zeros(2, problem.classes, problem.embedding, device=problem.device)

    def step(self, x_BD: Tensor, instance_B: Tensor) -> Tensor:
        problem = self._problem
        rows_SD, momentum_SD, index_S = self.rows_ND, self.momentum_ND, None
        if self._rate < 1:
            index_S = self._sample(instance_B)
            rows_SD, momentum_SD, instance_B = rows_SD[index_S], momentum_SD[index_S], torch.searchsorted(index_S, instance_B)
        leaf_SD = rows_SD.detach().requires_grad_()
        loss = _SoftmaxInPlace.apply(logits(problem, x_BD, leaf_SD, self._in_bf16), instance_B)
        loss.backward()
        gradient_SD = leaf_SD.grad
        assert gradient_SD is not None
        with torch.no_grad():
            gradient_SD.add_(rows_SD, alpha=problem.weight_decay)
            momentum_SD.mul_(problem.momentum).add_(gradient_SD)
            rows_SD.add_(momentum_SD, alpha=-problem.learning_rate)
        if index_S is not None:
            self.rows_ND[index_S], self.momentum_ND[index_S] = rows_SD, momentum_SD
        return loss.detach()

    def _sample(self, instance_B: Tensor) -> Tensor:
        positive_T = instance_B.unique()
        count = int(self._rate * self._problem.classes)
        if count <= len(positive_T):
            return positive_T
        chance_N = torch.rand(self._problem.classes, device=instance_B.device)
        chance_N[positive_T] = 2.0
        return chance_N.topk(count).indices.sort().values


class _SoftmaxInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logit_BS: Tensor, label_B: Tensor) -> Tensor:
        logit_BS -= logit_BS.amax(1, keepdim=True)
        logit_BS.exp_()
        logit_BS /= logit_BS.sum(1, keepdim=True)
        ctx.save_for_backward(logit_BS, label_B)
        return -logit_BS.gather(1, label_B[:, None]).clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None]:
        p_BS, label_B = ctx.saved_tensors
        p_BS[torch.arange(len(label_B), device=label_B.device), label_B] -= 1
        return p_BS.mul_(grad_loss / len(label_B)), None
