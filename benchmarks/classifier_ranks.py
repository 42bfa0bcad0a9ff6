"""The classifier on 1, 2, 4 and 8 gloo processes: how far from float64, and what a rank sends in a step; beside it ZeRO-3 and DDP.

    python -m benchmarks.classifier_ranks [--ranks 1,2,4,8] [--classes 1000,10000,100000] [--batch 64] [--json FILE]
    python -m benchmarks.classifier_ranks --steps 1000      other numbers of ranks over many steps (rank_determinism.py)

The first table: after STEPS steps, the greatest difference of the loss, of its gradient for the features (over the greatest such
gradient) and of the updated rows from the plain classifier under torch.optim.SGD in float64. Over TOLERANCE the exit code is 1.
The second: bytes that leave a rank in a step, counted by the process group (by convention: counted_group.SENT); by the kernel on the
loopback device, all ranks together over P; and for ours by the formula of rank_heads.bytes_of_ours, which must be the count.
Other programs' traffic on the device is in the kernel's count; for a device of its own, as root:
    unshare -n sh -c 'ip link set lo up; exec python -m benchmarks.classifier_ranks'
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import rank_determinism
from benchmarks.counted_group import loopback_bytes, on_counted_ranks, sent_bytes
from benchmarks.rank_heads import DECAY, HEADS, MOMENTUM, RATE, Problem, bytes_of_ours
from trainer.classifier.oracle import DenseClassifier
from trainer.classifier.targets import SoftTargets

STEPS = 3
TOLERANCE = {"loss_error": 1e-5, "dx_error": 1e-5, "rows_error": 1e-5}
"""Of fp32 against float64. The loss lies near log N, about 10: its own spacing in fp32 is 1e-6."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--ranks", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--classes", type=numbers, default=[1000, 10_000, 100_000])
    parser.add_argument("--peers-to", type=int, default=100_000, help="most classes of the peers and of the float64 oracle (memory)")
    parser.add_argument("--heads", default=",".join(HEADS), help="which to run")
    parser.add_argument("--batch", type=int, default=64, help="global; divisible by each number of ranks")
    parser.add_argument("--size", type=int, default=128, help="D")
    parser.add_argument("--hardest-k", type=int, default=50)
    parser.add_argument("--smoothing", type=float, default=0.2)
    parser.add_argument("--traffic-steps", type=int, default=20, help="over which bytes are counted")
    parser.add_argument("--steps", type=int, default=0, help="compare numbers of ranks over so many steps, and nothing else")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if any(asked.batch % ranks for ranks in asked.ranks):
        parser.error(f"--batch {asked.batch} does not divide by each of --ranks {asked.ranks}")
    targets = SoftTargets(0.1, asked.smoothing, asked.hardest_k)
    if asked.steps:
        results = rank_determinism.compare(asked.steps, [ranks for ranks in asked.ranks if ranks <= 4])
    else:
        problems = [Problem(classes, asked.size, asked.batch, targets) for classes in asked.classes]
        results = _all(problems, asked.ranks, asked.heads.split(","), asked.peers_to, asked.traffic_steps)
        _print_tables(results)
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1))
    wrong = [row for row in results if any(row.get(name, 0.0) > limit for name, limit in TOLERANCE.items())]
    wrong += [row for row in results if row["name"] == "ranks" and rank_determinism.fails(row)]
    wrong += [row for row in results if row["name"] == "ours" and row["bytes_counted"] != row["bytes_formula"]]
    for row in wrong:
        print(f"outside the tolerance, or the formula is not the count: {row}", file=sys.stderr)
    return bool(wrong)


def _all(problems: list[Problem], ranks: list[int], heads: list[str], peers_to: int, traffic_steps: int) -> list[dict[str, Any]]:
    results = []
    for problem in problems:
        expected = by_oracle(problem) if problem.classes <= peers_to else None
        for name in heads:
            if name != "ours" and problem.classes > peers_to:
                continue
            for world_size in ranks:
                # Of the peers so much is sent that fewer steps will do.
                counted = traffic_steps if name == "ours" else max(3, traffic_steps // 4)
                (found, *others) = on_counted_ranks(world_size, measure, name, problem, counted, expected is not None)
                row = {
                    "name": name,
                    "ranks": world_size,
                    "classes": problem.classes,
                    "batch": problem.batch,
                    "embedding_size": problem.size,
                }
                row |= {"hardest_k": problem.targets.num_hardest, "steps": STEPS, "device": "cpu, gloo"}
                row["bytes_counted"] = max(rank["bytes"] for rank in [found, *others])
                row |= {"bytes_by_collective": found["by_collective"], "bytes_loopback": found["loopback"]}
                if name == "ours":
                    row["bytes_formula"] = bytes_of_ours(world_size, problem.batch, problem.size, problem.targets.num_hardest)
                if expected is not None:
                    row |= _errors([found, *others], expected)
                results.append(row)
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def by_oracle(problem: Problem) -> dict[str, Any]:
    """Losses and feature gradients of STEPS steps in float64, and the rows after them."""
    oracle = DenseClassifier(problem.rows().double(), problem.targets)
    optimizer = torch.optim.SGD(oracle.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    losses, gradients = [], []
    for step in range(STEPS):
        x_BD, instance_B = problem.samples(step)
        x_BD = x_BD.double().requires_grad_()
        optimizer.zero_grad()
        loss = oracle(x_BD, instance_B)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        gradients.append(x_BD.grad)
    return {"losses": losses, "gradients": gradients, "rows": oracle.rows_ND.detach()}


def measure(name: str, problem: Problem, traffic_steps: int, with_rows: bool) -> dict[str, Any]:
    """On one rank: STEPS steps for the errors, then `traffic_steps` more for the bytes. Rank 0 returns all
    rows."""
    head = HEADS[name](problem)
    losses, gradients = [], []
    for step in range(STEPS):
        x_bD, instance_b = problem.part(step)
        loss, gradient_bD = head.step(x_bD, instance_b)
        losses.append(loss.item())
        gradients.append(gradient_bD.clone())
    rows_ND = head.rows() if with_rows else None
    parts = [problem.part(STEPS + step) for step in range(traffic_steps)]

    dist.barrier()
    before, by_kernel = sent_bytes.copy(), loopback_bytes()
    dist.barrier()
    for x_bD, instance_b in parts:
        head.step(x_bD, instance_b)
    sent = {kind: (sent_bytes[kind] - before[kind]) / traffic_steps for kind in sent_bytes if sent_bytes[kind] > before[kind]}
    dist.barrier()
    loopback = (loopback_bytes() - by_kernel) / traffic_steps / dist.get_world_size()
    time.sleep(0.1)  # no rank takes its connections down while another still reads the counter
    result = {"losses": losses, "gradients": gradients, "bytes": sum(sent.values()), "by_collective": sent, "loopback": loopback}
    return result | {"rows": rows_ND if dist.get_rank() == 0 else None}


def _errors(ranks: list[dict[str, Any]], expected: dict[str, Any]) -> dict[str, float]:
    """Of the worst step."""
    P = len(ranks)
    loss, dx = [], []
    for step in range(STEPS):
        loss.append(abs(sum(rank["losses"][step] for rank in ranks) / P - expected["losses"][step]))
        theirs_BD = expected["gradients"][step]
        gradient_BD = torch.cat([rank["gradients"][step] for rank in ranks]).double() / P
        dx.append(float((gradient_BD - theirs_BD).abs().max() / theirs_BD.abs().max()))
    return {"loss_error": max(loss), "dx_error": max(dx), "rows_error": _largest(ranks[0]["rows"].double() - expected["rows"])}


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _print_tables(results: list[dict[str, Any]]) -> None:
    print(f"\nError against float64 after {STEPS} steps (tolerance of each: 1e-5)")
    print(f"{'':14} {'ranks':>5} {'classes':>9} {'loss':>9} {'dx / max':>9} {'rows':>9}")
    for row in results:
        if "rows_error" in row:
            errors = " ".join(f"{row[name]:9.1e}" for name in TOLERANCE)
            print(f"{row['name']:14} {row['ranks']:5} {row['classes']:9,} {errors}")
    print("\nBytes that leave a rank in a step")
    print(f"{'':14} {'ranks':>5} {'classes':>9} {'counted':>13} {'formula':>13} {'loopback / P':>13}")
    for row in sorted(results, key=lambda row: (row["name"] != "ours", row["name"], row["ranks"], row["classes"])):
        formula = f"{row['bytes_formula']:13,.0f}" if "bytes_formula" in row else f"{'':13}"
        print(
            f"{row['name']:14} {row['ranks']:5} {row['classes']:9,} {row['bytes_counted']:13,.0f} {formula} {row['bytes_loopback']:13,.0f}"
        )


if __name__ == "__main__":
    sys.exit(main())
