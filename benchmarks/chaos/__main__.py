"""Seeded faults on a real control plane: python -m benchmarks.chaos [--faults 200] [--seed 0] [--pause 3] [--json FILE] [--keep DIR]

Redis, the API and three workers of two slots on this machine; small CPU runs (one node of two ranks; a gang of two nodes; one
rank) are always in the queue while faults happen. Each kind of run is first trained without faults; at the end every run's
weights must equal those, bit for bit. Exit code 0 only if everything that must not happen happened 0 times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.stack import Stack, history
from service.errors import ApiProblem, ApiUnavailable
from service.layout import write_whole
from service.lifecycle import TERMINAL, TRANSITIONS, Event, Status
from service.runs import Run
from service.spec import RunSpec, parse_spec

AT_ONCE = 3
"""Runs that are queued or run while faults happen."""
KINDS = {"one-rank": (1, 1), "one-node": (1, 2), "gang": (2, 1)}
END_SECONDS = 600.0


def write_images(folder: Path) -> None:
    random_numbers = np.random.default_rng(0)
    folder.mkdir()
    for number in range(96):
        cv2.imwrite(str(folder / f"{number:03d}.png"), random_numbers.integers(0, 255, (16, 16, 3), dtype=np.uint8))


def spec_of(kind: str, images: Path) -> RunSpec:
    nodes, ranks = KINDS[kind]
    document = {
        "name": kind,
        "data": {"path": str(images), "image_size": 16},
        "backbone": {"name": "resnet18", "args": {"layers": [1, 1, 1, 0], "channels": [8, 16, 16, 16]}},
        "classifier": {"embedding_size": 16, "hardest_k": 5},
        "optimizer": {"global_batch_size": 16},
        "schedule": {"epochs": 12},
        "resources": {"nodes": nodes, "ranks_per_node": ranks, "device": "cpu"},
        "retries": {"infrastructure": 1000, "crashes": 1000},
        "log_every_steps": 2,
    }
    return parse_spec(document)


def weights_of(stack: Stack, run: Run) -> str:
    """SHA-256 over the exported weights and the last checkpoint's tensors."""
    directory, digest = stack.runs / run.id, hashlib.sha256()
    last = max((directory / "checkpoints").glob("step-*"))
    for path in sorted([*(directory / "export").glob("*.safetensors"), *last.glob("*.safetensors")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Watch(threading.Thread):
    """Looks at the processes all the time: ranks of two attempts of one run at once."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self.stack, self.twice, self.ended = stack, set[tuple[str, int, int]](), False

    def run(self) -> None:
        suspected: set[tuple[str, int, int]] = set()
        while not self.ended:
            attempts: dict[str, set[int]] = {}
            for run_id, attempt in self.stack.ranks().values():
                attempts.setdefault(run_id, set()).add(attempt)
            now = {(run, min(found), max(found)) for run, found in attempts.items() if len(found) > 1}
            self.twice |= now & suspected  # seen in two looks: not a process that is just dying
            suspected = now
            time.sleep(1.0)


def finish(stack: Stack, runs: list[Run], seconds: float) -> list[Run]:
    """The runs once all have ended, or as they are when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        stack.supervise()
        try:
            found = [stack.client.run(run.id) for run in runs]
            if all(run.status in TERMINAL for run in found) or time.monotonic() > deadline:
                return found
        except (ApiUnavailable, ApiProblem) as error:
            if time.monotonic() > deadline:
                sys.exit(f"the API does not come back: {error}")
        time.sleep(0.5)


def broken_histories(stack: Stack, runs: list[Run]) -> int:
    """Runs whose history is no path through the table, or that left an end."""
    broken = 0
    for run in runs:
        status = Status.QUEUED
        for entry in history(stack.client, run.id)[1:]:
            after = TRANSITIONS.get((status, Event(entry["event"])))
            if after != entry["status"]:
                broken += 1
                break
            status = after
    return broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=3.0, help="mean seconds between two faults")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="where to work, kept afterwards (default: a temporary directory)")
    arguments = parser.parse_args()
    directory = (arguments.keep or Path(tempfile.mkdtemp(prefix="millionway-chaos-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(arguments.seed)
    images = directory / "images"
    write_images(images)
    stack = Stack(directory, arguments.seed)
    begun, faults, runs = time.monotonic(), Counter[str](), list[Run]()
    try:
        fault_free = finish(stack, [stack.client.submit(spec_of(kind, images)) for kind in KINDS], END_SECONDS)
        assert all(run.status == Status.SUCCEEDED for run in fault_free), [run.reason for run in fault_free]
        expected = {run.name: weights_of(stack, run) for run in fault_free}
        print(f"without faults: {len(expected)} runs in {time.monotonic() - begun:.0f} s; now {arguments.faults} faults", flush=True)
        watch = Watch(stack)
        watch.start()
        kinds, last_line = sorted(KINDS), time.monotonic()
        while sum(faults.values()) < arguments.faults:
            stack.supervise()
            try:
                live = [run for run in runs[-2 * AT_ONCE :] if stack.client.run(run.id).status not in TERMINAL]
                if len(live) < AT_ONCE:
                    runs.append(stack.client.submit(spec_of(kinds[len(runs) % len(kinds)], images)))
            except (ApiUnavailable, ApiProblem):
                pass  # not acknowledged: nothing is promised
            (fault,) = rng.choices(list(FAULTS), list(FAULTS.values()))
            if fault(stack, rng):
                faults[fault.__name__] += 1
            time.sleep(rng.uniform(0, 2 * arguments.pause))
            if time.monotonic() - last_line > 30:
                last_line = time.monotonic()
                print(f"{sum(faults.values())} faults, {len(runs)} runs, {stack.restarts} restarts", flush=True)
        print("no more faults: the runs end", flush=True)
        ended = finish(stack, runs, END_SECONDS)
        watch.ended = True
        lost = 0
        for run in runs:
            try:
                stack.client.run(run.id)
            except ApiProblem:
                lost += 1
        logs = "\n".join(path.read_text(errors="replace") for run in runs for path in (stack.runs / run.id).glob("attempts/*/*.log"))
        must_be_zero = {
            "acknowledged runs lost": lost,
            "runs that did not succeed": sum(run.status != Status.SUCCEEDED for run in ended),
            "runs executed by two attempts at once": len(watch.twice),
            "histories that leave an end or the table": broken_histories(stack, ended),
            "checkpoints loaded torn": logs.count("Error while deserializing"),  # a full disk fails "while serializing"
            "runs whose weights differ": sum(
                weights_of(stack, run) != expected[run.name] for run in ended if run.status == Status.SUCCEEDED
            ),
        }
        attempts = sum(run.attempt for run in ended)
        not_succeeded = [f"{run.id} {run.name} {run.status}: {run.reason}" for run in ended if run.status != Status.SUCCEEDED]
    finally:
        left = stack.close()
    must_be_zero["leftover processes"] = len(left)
    seconds = time.monotonic() - begun
    print(f"\nseed {arguments.seed}: {sum(faults.values())} faults in {seconds:.0f} s, {len(runs)} runs in {attempts} attempts")
    for name, count in sorted({**faults, **{f"http: {k}": v for k, v in stack.proxy.done.items()}}.items()):
        print(f"  {name:24}{count:6}")
    for name, count in must_be_zero.items():
        print(f"{name:44}{count:6}")
    print("\n".join(not_succeeded))
    result: dict[str, Any] = {"seed": arguments.seed, "faults": faults, "http": stack.proxy.done, "runs": len(runs), "attempts": attempts}
    if arguments.json:
        write_whole(arguments.json, json.dumps({**result, "seconds": seconds, "must_be_zero": must_be_zero}, indent=1))
    sys.exit(1 if any(must_be_zero.values()) else 0)


if __name__ == "__main__":
    main()
