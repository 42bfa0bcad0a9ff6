"""A week of a large cluster under the scheduler alone, beside two plain policies on the same runs and the same failures.

    python -m benchmarks.scheduler_simulation [--nodes 10000] [--runs 100000] [--days 7] [--json FILE]

First single passes over as many queued runs as --runs: how many a second are decided. Then the week: --runs arrive over --days, more by
day than by night and more than the cluster can do, on nodes of 8 GPUs of which some fail; after the last arrival the rest is worked off.
Events are gathered into one pass per --pass-seconds of simulated time. Times of passes are CPU seconds of this process, so that what else
the machine does is not in them.

fifo       strictly in the order of submission; nobody overtakes
first-fit  in the order of submission, whoever fits; no reservations, no priorities: large gangs starve behind small runs
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.simulated_week import DAY, HOUR, SLOTS, STARVING_SECONDS, Week, draw_runs, fifo, first_fit
from service.layout import write_whole
from service.scheduling.decide import decide
from service.scheduling.model import Cluster, Decisions, Live, Node, Policy


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else math.nan


def figures(week: Week) -> dict[str, Any]:
    runs = list(week.runs.values())
    sizes = {"1 to 4 ranks": (1, 4), "1 node": (5, 8), "2 to 8 nodes": (16, 64), "16, 32 nodes": (128, 256), "64 nodes": (512, 512)}
    waits: dict[str, list[float]] = {name: [] for name in sizes}
    by_priority: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        assert run.first_started_at is not None
        ranks = run.queued.shapes[0][0] * run.queued.shapes[0][1]
        name = next((name for name, (least, most) in sizes.items() if least <= ranks <= most), "64 nodes")
        waits[name].append((run.first_started_at - run.arrives_at) / HOUR)
        by_priority[run.queued.priority].append((run.first_started_at - run.arrives_at) / HOUR)
    return {
        "passes": len(week.pass_seconds),
        "pass p50 ms": 1000 * statistics.median(week.pass_seconds),
        "pass p99 ms": 1000 * percentile(week.pass_seconds, 0.99),
        "queued runs decided per s": week.decided / sum(week.pass_seconds),
        "utilisation %": 100 * week.used / (week.args.nodes * SLOTS * week.args.days * DAY),
        "all done after days": week.now / DAY,
        "wait h, by size": {name: _waits(found) for name, found in waits.items()},
        "wait h, by priority": {str(priority): _waits(found) for priority, found in sorted(by_priority.items())},
        "longest stay in the queue h": max(run.longest_wait for run in runs) / HOUR,
        f"starved (over {STARVING_SECONDS / HOUR:.0f} h in the queue)": sum(run.longest_wait > STARVING_SECONDS for run in runs),
        "deadlocks": 0,
        "most preemptions of one run": max(run.num_preempted for run in runs),
        **{name: count for name, count in sorted(week.counts.items()) if name != "events"},
    }


def _waits(hours: list[float]) -> str:
    if not hours:
        return "-"
    return f"{statistics.median(hours):.2f} / {percentile(hours, 0.99):.1f} / {max(hours):.1f}"


def passes(args: argparse.Namespace) -> dict[str, Any]:
    """One pass over --runs queued runs: on free nodes, on full ones, and on full ones whose runs may be preempted."""
    runs = [replace(run.queued, queued_at=-run.arrives_at / 10) for run in draw_runs(args)]
    free = tuple(Node(f"node{number:05}", SLOTS, tuple(range(SLOTS)), True, "nfs", True) for number in range(args.nodes))
    full = tuple(replace(node, free=()) for node in free)
    random_ = random.Random(args.seed)
    live = tuple(
        Live(
            f"live{number}",
            f"owner{number % 50}",
            random_.choice([0, 0, 2]),
            {node.id: tuple(range(SLOTS))},
            -HOUR,
            HOUR * random_.random(),
        )
        for number, node in enumerate(full)
    )
    cases = {
        "free nodes": (Cluster(0.0, free, tuple(runs)), Policy()),
        "full nodes": (Cluster(0.0, full, tuple(runs), live), Policy(preemption=False)),
        "full nodes, preemption": (Cluster(0.0, full, tuple(runs), live), Policy()),
    }
    found = {}
    for name, (cluster, policy) in cases.items():
        begun = time.process_time()
        decisions = decide(cluster, policy)
        seconds = time.process_time() - begun
        found[name] = {
            "CPU s": seconds,
            "queued runs decided per s": len(runs) / seconds,
            "placed": len(decisions.places),
            "stopped": len(decisions.stops),
            "kept": len(decisions.reservations),
        }
    return found


def show(title: str, columns: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}\n{'':44}" + "".join(f"{name:>28}" for name in columns))
    for row in dict.fromkeys(row for column in columns.values() for row in column):
        cells = [column.get(row, 0) for column in columns.values()]
        if any(isinstance(cell, dict) for cell in cells):
            print(f"{row} (median / p99 / maximum)")
            for name in cells[0]:
                print(f"    {name:40}" + "".join(f"{cell[name]:>28}" for cell in cells))
        else:
            print(f"{row:44}" + "".join(f"{cell:>28,.3f}" if isinstance(cell, float) else f"{cell:>28,}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--load", type=float, default=1.1, help="slot-seconds that arrive for each that the cluster has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pass-seconds", type=float, default=300.0, help="simulated time between passes")
    parser.add_argument("--only", choices=["millionway", "fifo", "first-fit"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    once = passes(args)
    show(f"One pass: {args.nodes} nodes of {SLOTS} slots, {args.runs} queued runs", once)
    policies: dict[str, Callable[[Cluster], Decisions]] = {"millionway": decide, "fifo": fifo, "first-fit": first_fit}
    weeks = {}
    for name, policy in policies.items():
        if args.only in (None, name):
            week = Week(args, policy, {run.queued.run_id: run for run in draw_runs(args)})
            week.play()
            weeks[name] = figures(week)
    show(f"{args.runs} runs in {args.days:g} days, load {args.load:g}, a pass each {args.pass_seconds:g} s, seed {args.seed}", weeks)
    if args.json:
        write_whole(args.json, json.dumps({"passes": once, "weeks": weeks}, indent=2).encode())
    if "millionway" in weeks:
        starved = [value for row, value in weeks["millionway"].items() if row.startswith("starved")]
        assert starved == [0], f"{starved[0]} runs starved"


if __name__ == "__main__":
    main()
