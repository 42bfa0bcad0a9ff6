"""One rank of 64, measured on one device, and what a step of 64 such ranks would then take at 100 Gb/s.

    python -m benchmarks.one_rank_of_64 [--device cpu|cuda] [--classes 1280000,10000000,100000000] [--batch 4096] [--json FILE]

Measured: the rank's compute (the scan of its rows, its targets, the update) and its memory beyond rows and momentum; the other 63 are
played by a process group (sole_rank.py says what is fake). Counted: the bytes that leave the rank, by counted_group's convention; over
real processes benchmarks.classifier_ranks finds the same formula. Also measured: forward and backward pass of a ResNet-50, for the share
that the classifier has in a step. Arithmetic: the network's time. Estimates for other devices are marked so; nothing of them is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import step_model
from benchmarks.rank_heads import bytes_of_ours
from benchmarks.sole_rank import Case, measure
from trainer.torchvision_shim import import_timm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--classes", type=numbers, default=[1_280_000, 10_000_000, 100_000_000])
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--hardest-k", type=numbers, default=[0, 50], help="0: without smoothing")
    parser.add_argument("--products", type=lambda text: text.split(","), default=["fp32", "bf16"])
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="at most, of each row")
    parser.add_argument("--seconds", type=float, default=20, help="of each row, with one step at least")
    parser.add_argument("--encoder-images", type=int, default=0, help="in the batch that is measured; default 16 on a CPU, 64 on a GPU")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    images = asked.encoder_images or (16 if asked.device == "cpu" else 64)
    encoder = _alone(encoder_seconds, asked.device, images, asked.products[-1])
    name = torch.cuda.get_device_name() if asked.device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    print(step_model.of_encoder(encoder, images, name))

    print(step_model.HEADER)
    results = []
    for classes in asked.classes:
        for products in asked.products:
            for k in asked.hardest_k:
                case = Case(classes, asked.batch, k, products, asked.device, asked.rank)
                row = {
                    "name": "one-rank-of-64",
                    "classes": classes,
                    "batch": asked.batch,
                    "hardest_k": k,
                    "products": products,
                    "device": name,
                }
                row |= _alone(measure, case, asked.steps, asked.seconds)
                assert row["bytes_counted"] == bytes_of_ours(case.ranks, asked.batch, case.size, k), row["bytes_counted"]
                row |= step_model.of_step(row, encoder, case)
                results.append(row)
                print(step_model.line(row), flush=True)
    print(step_model.notes(results, asked.batch))
    if asked.json:
        asked.json.write_text(json.dumps([*results, *step_model.estimates(results, asked.batch)], indent=1))
    return 0


def encoder_seconds(device: str, images: int, products: str) -> float:
    """Of one image: a ResNet-50 forward and backward at 224 pixels, the fastest of three batches; 16-bit products by autocast on a GPU."""
    timm = import_timm()
    model = timm.create_model("resnet50").to(device).train()
    image_b = torch.randn(images, 3, 224, 224, device=device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.bfloat16}[products]
    times = []
    for _ in range(1 + 3):
        start = time.perf_counter()
        with torch.autocast(device, dtype, enabled=products != "fp32" and device != "cpu"):
            total = model(image_b).float().sum()
        total.backward()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:]) / images


def _alone(function: Any, *arguments: Any) -> Any:
    """In a process of its own: of its memory nothing is another measurement's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    sys.exit(main())
