"""What each part of the method is worth: kNN on CIFAR-10 after pretraining on 10,000 of its training images, on two CPU ranks.

    python benchmarks/cifar10_ablation.py DIR [--json FILE] [--only NAME ...] [--epochs 30]

DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg. The protocol is the sanity check of the project's first prototype: 1,000
training images of each class, a ResNet of three basic blocks (32, 64, 128 channels), D = 128, batch 256, tau = 0.15, encoder
learning rate 0.1; kNN with k = 200, T = 0.1, the same 10,000 images as the bank and the 10,000 test images as queries. Labels
serve the kNN only. "plain" is the peer: instance softmax with random rows and one-hot targets (Exemplar CNN's loss).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from service.launch import Launch, free_port, job_command, job_environment
from service.layout import RunDir, write_whole
from service.spec import RunSpec, merge, parse_spec
from service.worker.machine import visible_gpus

ONE_RATE = {"classifier_learning_rate": None, "classifier_weight_decay": None}
OWN_RATE = {"classifier_learning_rate": 1.0, "classifier_weight_decay": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"classifier": {"initialisation": "random", "smoothing": 0.0}, "optimizer": ONE_RATE},
    "plain, own rate": {"classifier": {"initialisation": "random", "smoothing": 0.0}, "optimizer": OWN_RATE},
    "prior": {"classifier": {"smoothing": 0.0}, "optimizer": ONE_RATE},
    "prior, smoothing": {"optimizer": ONE_RATE},
    "prior, smoothing, own rate": {"optimizer": OWN_RATE},
    "prior, smoothing, own rate, 2 small views": {"optimizer": OWN_RATE, "augmentation": {"small_views": 2, "small_size": 16}},
    "prior, smoothing by similarity, own rate": {"classifier": {"hardest_by": "class_similarity"}, "optimizer": OWN_RATE},
}
MAIN = ["plain", "prior, smoothing", "prior, smoothing, own rate"]


def variant_spec(data: Path, name: str, epochs: int, seed: int) -> RunSpec:
    base = {
        "preset": "cifar10",
        "data": {"path": str(data / "train"), "limit": 10_000},
        "backbone": {"args": {"layers": [1, 1, 1, 0], "channels": [32, 64, 128, 128]}},
        "optimizer": {"global_batch_size": 256, "learning_rate": 0.1},
        "schedule": {"epochs": epochs, "warmup_epochs": 1},
        "evaluation": {"labelled": str(data / "train"), "queries": str(data / "test"), "limit": 10_000, "every_epochs": 5},
        "resources": {"ranks_per_node": 2, "device": "auto"},
        "checkpoints": {"every_epochs": 1000},
        "seed": seed,
    }
    return parse_spec(merge(base, VARIANTS[name]))


def run(spec: RunSpec) -> dict[str, Any]:
    """Train; kNN by epoch, of the random encoder (0) on."""
    gpus = tuple(visible_gpus())[:2]
    gpus = gpus if len(gpus) == 2 else ()
    directory = Path(tempfile.mkdtemp(prefix="millionway-"))
    run_dir = RunDir(directory)
    write_whole(run_dir.spec, spec.model_dump_json())
    begun = time.time()
    launch = Launch(directory, 1, ranks_per_node=2, master_port=free_port(), num_threads=max(1, (os.cpu_count() or 2) // 2), gpus=gpus)
    run_dir.attempt(1).path.mkdir(parents=True)
    job = subprocess.run(job_command(launch), env=job_environment(spec, launch), capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in run_dir.attempt(1).events.read_text().splitlines()]
    if job.returncode:
        sys.exit(f"the job failed: {events[-1] if events else job.stderr}")
    knn = {round(event["epoch"]): event["knn"] for event in events if event["kind"] == "evaluated"}
    shutil.rmtree(directory)
    return {"knn": knn, "seconds": time.time() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", default=MAIN, choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results = {}
    columns = list(range(0, arguments.epochs + 1, 5))
    print(f"{'kNN (%) at epoch':42}" + "".join(f"{epoch:>7}" for epoch in columns) + f"{'seconds':>9}", flush=True)
    for name in arguments.only:
        results[name] = run(variant_spec(arguments.data.resolve(), name, arguments.epochs, arguments.seed))
        knn = results[name]["knn"]
        cells = "".join(f"{knn[epoch]:7.1f}" if epoch in knn else f"{'':7}" for epoch in columns)
        print(f"{name:42}{cells}{results[name]['seconds']:9.0f}", flush=True)
    if arguments.json:
        write_whole(arguments.json, json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
