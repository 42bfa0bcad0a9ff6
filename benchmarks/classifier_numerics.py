"""What the classifier's precisions and storage options do to learning: 2,000 steps on features of CIFAR-10, against fp32.

    python -m benchmarks.classifier_numerics DIR --json FILE [--only NAME ...] [--steps 2000] [--cache FILE.npz] [--plot FILE.svg]

DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg. 10,000 images are the classes; eight augmented views of each pass once through a fixed
random convolution (numerics_features.py). A two-layer network and the classifier's rows are trained on them by SGD: D = 128, batch 256,
tau = 0.15, alpha = 0.2, K = 50, rows from the prior. All variants of a seed see the same batches and first weights. kNN (k = 200,
T = 0.1) is that of the hidden layer. Results gather in FILE, so that `--only` can run in pieces; the table shows all that is there.

`fp32, seed 1` and `fp32, seed 2` say what chance does. `bf16 rows, nearest` is not in the trainer: it shows why it rounds stochastically.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import numerics_features
from benchmarks.numerics_features import Features
from service.layout import write_whole
from service.sizing import CPU_CHUNK, CPU_TILE
from trainer.classifier.chunked import ChunkedBackend
from trainer.classifier.products import CpuBf16, Fp32, HalfInEmulated
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.store import RowStore
from trainer.classifier.targets import SoftTargets
from trainer.evaluate import knn_accuracy

IMAGES, VIEWS, BATCH, HIDDEN, D, TAU, WINDOW = 10_000, 8, 256, 512, 128, 0.15, 50
WARMUP, RATE, ROWS_RATE, MOMENTUM, DECAY = 100, 0.1, 1.0, 0.9, 1e-4
SWEEP, SWEEP_STEPS = (0.03, 0.07, 0.15, 0.3, 0.5), 300
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
FP32 = Fp32()


@dataclass(frozen=True)
class Variant:
    products: Fp32 = FP32
    rows: torch.dtype = FULL
    momentum: torch.dtype = FULL
    on_host: bool = False
    nearest: bool = False
    seed: int = 0
    temperature: float = TAU
    steps: int | None = None
    """None: as the command says."""


VARIANTS = {
    "fp32": Variant(),
    "fp32, seed 1": Variant(seed=1),
    "fp32, seed 2": Variant(seed=2),
    "bf16 products (CPU)": Variant(CpuBf16()),
    "bf16 products, fp32 results": Variant(HalfInEmulated(BRAIN)),
    "fp16 products, fp32 results": Variant(HalfInEmulated(HALF)),
    "bf16 rows and momentum": Variant(rows=BRAIN, momentum=BRAIN),
    "fp16 rows": Variant(rows=HALF),
    "bf16 rows, nearest": Variant(rows=BRAIN, nearest=True),
    "rows on host": Variant(on_host=True),
}
for _tau in SWEEP:
    for _name, _products in (("fp32", FP32), ("bf16", CpuBf16()), ("fp16", HalfInEmulated(HALF))):
        VARIANTS[f"tau {_tau:g}, {_name}"] = Variant(_products, temperature=_tau, steps=SWEEP_STEPS)


class NearestStore(RowStore):
    """Rounds to the nearest."""

    def rounded(self, at: slice, rows_CD: Tensor, momentum_CD: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return rows_CD.to(self.rows_nD.dtype), momentum_CD.to(self.momentum_nD.dtype)


class Network(nn.Module):
    """Features to D; the hidden layer is what the kNN judges."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(features, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU())
        self.project = nn.Linear(HIDDEN, D)

    def forward(self, features_BF: Tensor) -> Tensor:
        return self.project(self.hidden(features_BF))

    def knn(self, data: Features) -> float:
        self.eval()
        with torch.no_grad():
            bank_NH, query_QH = self.hidden(data.plain_NF), self.hidden(data.query_QF)
        self.train()
        return knn_accuracy(bank_NH, data.label_N, query_QH, data.query_label_Q, 200, 0.1)


def build(variant: Variant, num_classes: int) -> ShardedClassifier:
    classifier = ShardedClassifier(
        num_classes,
        D,
        SoftTargets(variant.temperature, 0.2, 50),
        capacity=BATCH,
        momentum=MOMENTUM,
        rows_on="host" if variant.on_host else "device",
        rows_dtype=variant.rows,
        momentum_dtype=variant.momentum,
        backend=ChunkedBackend(variant.products, CPU_CHUNK, CPU_TILE),
    )
    if variant.nearest:
        classifier.store = NearestStore(0, classifier.rows_nD, classifier.momentum_nD)
    return classifier


def train(variant: Variant, data: Features, steps: int) -> dict[str, Any]:
    """Mean losses of windows of WINDOW steps, kNN before and after."""
    N = len(data.plain_NF)
    torch.manual_seed(variant.seed)
    network, classifier = Network(data.plain_NF.shape[1]), build(variant, N)
    with torch.no_grad():
        classifier.write_rows(torch.arange(N), F.normalize(network(data.plain_NF), dim=1))
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    generator = torch.Generator().manual_seed(variant.seed)
    losses, order_N, before = [], torch.empty(0, dtype=torch.long), network.knn(data)
    # A gradient is proportional to 1 / tau: rates are those of TAU.
    peak, begun = variant.temperature / TAU, time.perf_counter()
    for step in range(steps):
        if len(order_N) < BATCH:
            order_N = torch.randperm(N, generator=generator)
        instance_B, order_N = order_N[:BATCH], order_N[BATCH:]
        view_B = torch.randint(len(data.view_VNF), (BATCH,), generator=generator)
        factor = peak * learning_rate_factor(step, steps)
        optimizer.param_groups[0]["lr"] = RATE * factor
        loss = classifier(network(data.view_VNF[view_B, instance_B]), instance_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        classifier.step(ROWS_RATE * factor, step)
        losses.append(loss.item())
    seconds = time.perf_counter() - begun
    assert all(map(math.isfinite, losses)), "a loss is not finite"
    assert classifier.rows_nD.isfinite().all(), "a row is not finite"
    windows = [sum(losses[at : at + WINDOW]) / len(losses[at : at + WINDOW]) for at in range(0, steps, WINDOW)]
    rows_sum = classifier.rows_nD.double().sum().item()
    return {
        "steps": steps, "losses": windows, "knn_before": before, "knn": network.knn(data), "rows_sum": rows_sum, "seconds": seconds,
    }  # fmt: skip


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine."""
    warmup = min(WARMUP, steps // 5)
    return (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Losses at quarters, the last one's difference to fp32 of the same seed, kNN; and the sweep of temperatures."""
    lines = []
    if base := runs.get("fp32"):
        seeds = [runs[name] for name in VARIANTS if name.startswith("fp32") and name in runs]
        spread = {key: max(v) - min(v) for key, v in (("loss", [r["losses"][-1] for r in seeds]), ("knn", [r["knn"] for r in seeds]))}
        count = len(base["losses"])
        places = [0, count // 4 - 1, count // 2 - 1, 3 * count // 4 - 1, count - 1]
        lines.append(
            f"{'loss, mean of 50 steps until':30}" + "".join(f"{(p + 1) * WINDOW:>9}" for p in places) + "   last - fp32   kNN (%)"
        )
        for name in VARIANTS:
            if name in runs and not name.startswith("tau"):
                losses = runs[name]["losses"]
                cells = "".join(f"{losses[p]:9.4f}" for p in places if p < len(losses))
                lines.append(f"{name:30}{cells}{losses[-1] - base['losses'][-1]:+14.5f}{runs[name]['knn']:10.2f}")
        lines.append(f"{len(seeds)} seeds of fp32 lie {spread['loss']:.5f} in loss and {spread['knn']:.2f} in kNN apart;")
        lines.append(f"kNN before training {base['knn_before']:.2f}")
    for tau in SWEEP:
        names = [name for name in VARIANTS if name.startswith(f"tau {tau:g},") and name in runs]
        if names:
            lines.append(f"tau {tau:<6g}" + "".join(f"{name.split(', ')[1]:>8}{runs[name]['losses'][-1]:9.5f}" for name in names))
    return "\n".join(lines)


def plot(runs: dict[str, dict[str, Any]]) -> str:
    """Loss curves as SVG, without a library."""
    shown = [name for name in VARIANTS if name in runs and not name.startswith("tau")]
    values = [loss for name in shown for loss in runs[name]["losses"]]
    low, high = min(values), max(values)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" width="900" height="460" font-family="sans-serif" font-size="12">']
    for number, name in enumerate(shown):
        losses = runs[name]["losses"]
        points = " ".join(
            f"{50 + 600 * (i + 1) / len(losses):.1f},{20 + 400 * (high - loss) / (high - low or 1):.2f}" for i, loss in enumerate(losses)
        )
        colour = f"hsl({360 * number // len(shown)} 70% 40%)"
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        parts.append(f'<text x="660" y="{30 + 18 * number}" fill="{colour}">{name}</text>')
    parts.append(
        f'<text x="5" y="24">{high:.2f}</text><text x="5" y="424">{low:.2f}</text><text x="300" y="450">steps (loss upwards)</text>'
    )
    return "\n".join([*parts, "</svg>"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), metavar="NAME", help="also the start of names: 'tau 0.03'")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--cache", type=Path, help="an .npz for the features")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    names = [name for name in VARIANTS if name in arguments.only or any(name.startswith(f"{start},") for start in arguments.only)]
    runs = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    data = numerics_features.load(arguments.data, IMAGES, VIEWS, arguments.cache)
    for name in names:
        variant = VARIANTS[name]
        runs[name] = train(variant, data, variant.steps or arguments.steps)
        print(f"{name}: loss {runs[name]['losses'][-1]:.5f}, kNN {runs[name]['knn']:.2f}, {runs[name]['seconds']:.0f} s", flush=True)
        if arguments.json:
            write_whole(arguments.json, json.dumps(runs, indent=1))
    print(table(runs))
    if arguments.plot:
        write_whole(arguments.plot, plot(runs))


if __name__ == "__main__":
    main()
