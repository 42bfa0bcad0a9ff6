"""The classifier's benchmark on tiny sizes: what it writes, and that its reference is right."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import classifier, classifier_peers
from benchmarks.classifier_heads import build
from benchmarks.classifier_inputs import CHECKED, Problem
from benchmarks.classifier_measure import PeakMemory, measure
from benchmarks.classifier_peers import Unavailable
from benchmarks.classifier_truth import Truth, write_truth
from trainer.classifier.oracle import DenseClassifier

PROBLEM = Problem(classes=700, batch=24, embedding=16, steps=2, hardest_k=5)
EXACT = (
    "ours-fp32", "ours-fp32-smoothed", "dense", "dense-plain", "dense-smoothed", "dense-smoothed-lean", "linear_cross_entropy",
    "linear_cross_entropy-auto", "partial_fc-1.0",
)  # fmt: skip
ROUNDED = ("dense-bf16", "partial_fc-1.0-bf16", "ours-bf16", "ours-bf16-rows", "ours-bf16-smoothed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("truth")
    for smoothed in (False, True):
        write_truth(path, PROBLEM, smoothed)
    return path


def row(name: str, folder: Path) -> dict[str, Any]:
    try:
        return measure(name, PROBLEM, folder, seconds=10)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("smoothed", [False, True])
def test_the_reference_is_the_oracle_in_float64(smoothed: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed block by block, it equals autograd and torch.optim.SGD over the whole matrix."""
    monkeypatch.setattr("benchmarks.classifier_truth.SCORES", 24 * 256)  # three blocks, the last one smaller
    write_truth(folder, PROBLEM, smoothed)
    rows_ND = torch.empty(PROBLEM.classes, PROBLEM.embedding, dtype=torch.float64)
    x_SBD, instance_SB = PROBLEM.fill(rows_ND)
    oracle = DenseClassifier(rows_ND, PROBLEM.targets(smoothed))
    optimizer = torch.optim.SGD(oracle.parameters(), lr=PROBLEM.learning_rate, momentum=PROBLEM.momentum, weight_decay=PROBLEM.weight_decay)
    truth = Truth.at(folder, PROBLEM, smoothed)
    for step in range(CHECKED):
        x_BD = x_SBD[step].double().requires_grad_()
        optimizer.zero_grad()
        loss = oracle(x_BD, instance_SB[step])
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(truth.loss_S[step], loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(truth.gradient_SBD[step], x_BD.grad, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(truth.rows_ND, oracle.rows_ND.detach(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", EXACT)
def test_exact_heads_take_the_references_steps(name: str, folder: Path) -> None:
    """Loss, gradient of the features and updated rows are float64's to fp32's rounding."""
    found = row(name, folder)
    assert found["loss_error"] < 5e-6
    assert found["features_error_relative"] < 5e-6
    assert found["rows_error_relative"] < 5e-6


@pytest.mark.parametrize("name", ROUNDED)
def test_heads_in_bf16_are_near_the_reference(name: str, folder: Path) -> None:
    """And not exact: the precision in the name is the one that computes."""
    found = row(name, folder)
    assert found["loss_error"] < 0.05
    assert 1e-5 < found["rows_error_relative"] < 0.3


def test_a_sampled_head_moves_only_its_sample(folder: Path) -> None:
    """One step of PartialFC at 0.1: a tenth of the rows, each sample's own among them."""
    head = build("partial_fc-0.1", PROBLEM)
    x_SBD, instance_SB = PROBLEM.fill(head.rows_ND)
    before_ND = head.rows_ND.clone()
    head.step(x_SBD[0].requires_grad_(), instance_SB[0])
    moved_N = (head.rows_ND != before_ND).any(1)
    assert moved_N.sum() == PROBLEM.classes // 10
    assert moved_N[instance_SB[0]].all()


@pytest.mark.parametrize("name", ["cut-cross-entropy", "liger", "ours-fp16"])
def test_what_cannot_run_here_says_why(name: str) -> None:
    """A row that the device or an installation lacks is no row of figures."""
    with pytest.raises(Unavailable, match=r"GPU|products"):
        measure(name, PROBLEM, None, seconds=1)


@pytest.mark.parametrize("name", ["cut-cross-entropy", "liger", "liger-auto"])
def test_the_gpus_peers_get_normalised_rows_and_no_filter(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the packages' functions replaced by plain ones of their signatures, the step is the reference's to bf16's rounding."""

    def cut(e: Tensor, c: Tensor, targets: Tensor, filter_eps: float | str | None = "high", impl: str = "cce") -> Tensor:
        assert (filter_eps, impl) == (None, "cce")
        return F.cross_entropy((e @ c.T).float(), targets)

    def liger(input: Tensor, weight: Tensor, target: Tensor, accum_dtype: torch.dtype | None = None, chunk_mem_const: int = 1) -> Tensor:
        assert accum_dtype == torch.float32
        assert chunk_mem_const == (1 if name == "liger-auto" else 700 // (4 * 16))
        return F.cross_entropy((input @ weight.T).float(), target)

    monkeypatch.setattr(classifier_peers, "_imported", lambda *_: cut if name == "cut-cross-entropy" else liger)
    found = row(name, folder)
    assert found["loss_error"] < 0.05
    assert 1e-5 < found["rows_error_relative"] < 0.3


@pytest.mark.parametrize("name", ["ours", "ours-fp31", "densest", "partial_fc"])
def test_an_unknown_name_is_refused(name: str) -> None:
    """Nothing else is measured in its place."""
    with pytest.raises(ValueError, match="there are"):
        build(name, PROBLEM)


@pytest.mark.parametrize("from_kernel", [True, False])
def test_the_peak_is_that_of_what_was_allocated_and_freed(from_kernel: bool) -> None:
    """By the kernel's mark and by sampling alike."""
    memory = PeakMemory("cpu", from_kernel=from_kernel)
    with memory.watching():
        for _ in range(10):
            torch.ones(20_000_000)
    assert memory.extra() == pytest.approx(80e6, rel=0.2)


def test_the_command_writes_a_list_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented fields, one row for each head that ran, and a line for one that did not."""

    def here(call: str, problem: Problem, **arguments: Any) -> dict[str, Any]:
        return classifier.answer({"call": call, "problem": asdict(problem), **arguments})

    monkeypatch.setattr(classifier, "in_child", here)  # seconds for each process
    file = tmp_path / "rows.json"
    size = ["--device", "cpu", "--classes", "500", "--batch", "8", "--embedding", "16", "--steps", "1"]
    classifier.main([*size, "--only", "ours-fp32,dense,liger", "--json", str(file)])
    rows = json.loads(file.read_text())
    assert [row["name"] for row in rows] == ["ours-fp32", "dense"]
    for found in rows:
        assert (found["classes"], found["batch"], found["device"]) == (500, 8, "cpu")
        assert 0 < found["seconds_min"] <= found["seconds"] <= found["seconds_max"]
        assert found["extra_bytes"] >= 0
        assert found["rows_error"] < 1e-6
        assert found["loss_error"] < 1e-5
        assert found["torch"] == torch.__version__
        assert {"processor", "date", "share_of_products", "backend"} <= found.keys()
    printed = capsys.readouterr().out
    assert "its kernels need a GPU" in printed
    assert "dense / ours-fp32" in printed


def test_a_row_is_measured_in_a_process_of_its_own(folder: Path) -> None:
    """Its figures come back, and so does why there are none."""
    found = classifier.in_child("measure", PROBLEM, name="ours-fp32", folder=str(folder), seconds=1)
    assert found["name"] == "ours-fp32"
    assert found["rows_error"] < 1e-6
    failed = classifier.in_child("measure", PROBLEM, name="nothing", folder=None, seconds=1)
    assert "no head 'nothing'" in failed["unavailable"]


def test_a_head_that_would_not_fit_is_not_begun() -> None:
    """Memory that the machine lacks is not taken from others."""
    with pytest.raises(Unavailable, match="takes about"):
        measure("dense", replace(PROBLEM, classes=10**9, embedding=128), None, seconds=1)
