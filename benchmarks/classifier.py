"""The classifier's whole training step beside its peers', in one table: time, memory, error against float64.

    python -m benchmarks.classifier [--device auto|cpu|cuda] [--classes N] [--batch B] [--embedding 128] [--steps 5]
                                    [--only name,name] [--rows fp32|bf16|fp16] [--no-truth] [--growth] [--json FILE]

A step is forward, backward to the features and the rows, and SGD with momentum and weight decay. Every row gets the same first rows,
features and instances (classifier_inputs.py) in a fresh process, one after another. Extra memory is the peak beyond rows, momentum and
inputs. Names: classifier_heads.py. --growth: 10^4 to 10^7 classes, for how time and memory grow.

Run it on an idle machine; figures of one machine mean nothing by themselves: compare the rows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.classifier_heads import rows_dtype
from benchmarks.classifier_inputs import Problem
from benchmarks.classifier_measure import measure, products_rate
from benchmarks.classifier_peers import Unavailable
from benchmarks.classifier_truth import write_truth

DEFAULTS = {"cpu": (1_000_000, 256), "cuda": (1_280_000, 4096)}
EVERYWHERE = (
    "ours-fp32", "ours-bf16", "ours-bf16-rows", "dense", "dense-bf16", "linear_cross_entropy", "partial_fc-1.0", "partial_fc-0.1",
    "ours-fp32-smoothed", "ours-bf16-smoothed", "dense-smoothed", "dense-smoothed-lean",
)  # fmt: skip
ON_GPU = (
    "ours-fp16", "dense-compiled", "linear_cross_entropy-auto", "partial_fc-1.0-bf16", "partial_fc-0.1-bf16", "cut-cross-entropy", "liger",
    "liger-auto",
)  # fmt: skip
WITHOUT_TRITON = ("ours-chunked-fp32", "ours-chunked-bf16", "ours-chunked-fp16")
GROWTH = (10_000, 100_000, 1_000_000, 10_000_000), ("ours-fp32", "ours-bf16", "dense")
LARGEST_TRUTH = 1 << 32
"""Bytes of the rows in float64, of which there are up to four copies, two of them on disk."""


def default_names(device: str) -> list[str]:
    if device == "cpu":
        return list(EVERYWHERE)
    return [*EVERYWHERE, *ON_GPU, *WITHOUT_TRITON]


def in_child(call: str, problem: Problem, **arguments: Any) -> dict[str, Any]:
    """What `answer` returns, in a fresh process."""
    task = json.dumps({"call": call, "problem": asdict(problem), **arguments})
    child = subprocess.run([sys.executable, "-m", "benchmarks.classifier", "--child", task], capture_output=True, text=True)
    if child.returncode == 0:
        return json.loads(child.stdout.splitlines()[-1])
    errors = child.stderr.strip().splitlines()
    return {"unavailable": f"exit status {child.returncode}: {errors[-1] if errors else 'no message'}"}


def answer(task: dict[str, Any]) -> dict[str, Any]:
    problem = Problem(**task["problem"])
    if task["call"] == "rate":
        return {precision: products_rate(problem.device, precision) for precision in ("fp32", "bf16")}
    if task["call"] == "truth":
        write_truth(Path(task["folder"]), problem, task["smoothed"])
        return {}
    try:
        return measure(task["name"], problem, Path(task["folder"]) if task["folder"] else None, task["seconds"])
    except (Unavailable, torch.OutOfMemoryError) as reason:
        return {"unavailable": str(reason).splitlines()[0]}


def processor(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {torch.get_num_threads()} threads"


class Table:
    """Printed row by row as they come; the JSON is written with each."""

    def __init__(self, problem: Problem, machine: dict[str, Any], rates: dict[str, float], file: Path | None) -> None:
        self.rows, self._machine, self._rates, self._file = list[dict[str, Any]](), machine, rates, file
        self.start(problem)

    def start(self, problem: Problem) -> None:
        """A part with its own reference."""
        self._reference: dict[str, Any] | None = None
        print(f"\nN = {problem.classes:,}, B = {problem.batch}, D = {problem.embedding}, {problem.device}, whole step")
        print(
            f"{'':26}{'seconds':>9}{'min - max':>16}{'ns/class':>9}{'extra MB':>10}{'time':>7}{'memory':>8}{'of peak':>8}"
            f"{'loss err':>10}{'rows err':>10}{'relative':>10}{'dx rel.':>10}",
            flush=True,
        )

    def add(self, problem: Problem, row: dict[str, Any]) -> None:
        if "unavailable" in row:
            print(f"{row['name']:26} - {row['unavailable']}", flush=True)
            return
        precision = "bf16" if problem.device != "cpu" or "bf16" in row["name"] else "fp32"
        flop = 8 * problem.batch * problem.classes * problem.embedding
        sampled = float(row["name"].split("-")[1]) if row["name"].startswith("partial_fc") else 1.0
        row["flops_per_second"] = flop * sampled / row["seconds"]
        row["share_of_products"] = row["flops_per_second"] / self._rates[precision] if precision in self._rates else None
        for name in ("classes", "batch", "embedding", "device"):
            row[name] = getattr(problem, name)
        row |= {"rows_dtype": rows_dtype(row["name"], problem), **self._machine}
        self._reference = self._reference or row
        self.rows.append(row)
        if self._file:
            self._file.write_text(json.dumps(self.rows, indent=1) + "\n")
        share = row["share_of_products"]
        errors = (row[name] for name in ("loss_error", "rows_error", "rows_error_relative", "features_error_relative"))
        print(
            f"{row['name']:26}{row['seconds']:9.4f}{row['seconds_min']:8.3f}{row['seconds_max']:8.3f}"
            f"{row['seconds'] / problem.classes * 1e9:9.0f}{row['extra_bytes'] / 1e6:10.1f}"
            f"{row['seconds'] / self._reference['seconds']:7.2f}{row['extra_bytes'] / max(1, self._reference['extra_bytes']):8.2f}"
            f"{'-' if share is None else format(share, '.0%'):>8}"
            + "".join(f"{'-' if e is None else format(e, '.1e'):>10}" for e in errors)
            + (f"  disturbed: {row['waiting']:.2f} threads waited for a processor" if row["waiting"] > 0.1 else ""),
            flush=True,
        )


def ratios(rows: list[dict[str, Any]]) -> list[str]:
    """Of the dense peer to each of ours with the same targets."""
    lines = []
    for dense, smoothed in (("dense", False), ("dense-smoothed-lean", True)):
        for peer in (row for row in rows if row["name"] == dense):
            for row in rows:
                if row["name"].startswith("ours") and ("smoothed" in row["name"]) == smoothed and row["classes"] == peer["classes"]:
                    time, memory = peer["seconds"] / row["seconds"], peer["extra_bytes"] / max(1, row["extra_bytes"])
                    lines.append(
                        f"{dense} / {row['name']}, N = {row['classes']:,}: {time:.2f} times the time, {memory:.1f} times the memory"
                    )
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--embedding", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60, help="of timed steps in a row, after which no further one begins")
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--rows", choices=["fp32", "bf16", "fp16"], default="fp32", help="precision of our rows and momentum")
    parser.add_argument("--no-truth", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        print(json.dumps(answer(json.loads(args.child))))
        return

    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    classes, batch = (given or default for given, default in zip((args.classes, args.batch), DEFAULTS[device], strict=True))
    problem = Problem(classes, batch, args.embedding, device, args.rows, args.steps)
    sizes, names = GROWTH if args.growth else ((classes,), default_names(device))
    names = args.only.split(",") if args.only else names
    load, rates = os.getloadavg()[0], in_child("rate", problem)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    machine = {"processor": processor(device), "torch": torch.__version__, "date": date}
    has_truth = not args.no_truth and not args.growth and 8 * classes * args.embedding <= LARGEST_TRUTH
    table: Table | None = None
    with tempfile.TemporaryDirectory() as folder:
        for smoothed in sorted({"smoothed" in name for name in names}) if has_truth else []:
            if failed := in_child("truth", problem, folder=folder, smoothed=smoothed):
                sys.exit(f"float64: {failed['unavailable']}")
        for size in sizes:
            problem = replace(problem, classes=size)
            if table is None:
                table = Table(problem, machine, rates, args.json)
            else:
                table.start(problem)
            for name in names:
                row = in_child("measure", problem, name=name, folder=folder if has_truth else None, seconds=args.seconds)
                table.add(problem, {"name": name, **row})
    assert table is not None
    print("", *ratios(table.rows), sep="\n")
    products = ", ".join(f"{precision} {rate / 1e9:,.0f}" for precision, rate in rates.items() if isinstance(rate, float))
    print(f"{machine['processor']}; PyTorch {torch.__version__}; products in GFLOP/s: {products}; load before: {load:.1f}; {date}")
    if not has_truth:
        print("Errors were not taken: that needs no --no-truth, no --growth and rows of at most 4 GiB in float64.")


if __name__ == "__main__":
    main()
