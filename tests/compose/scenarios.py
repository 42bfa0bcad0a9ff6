"""What must be true of the deployment. Each scenario returns what it saw, in words, or raises Failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.compose.stack import LEASE_SECONDS, SLOTS, Run, Stack, check

EPOCHS = 8


@dataclass
class Bench:
    """The stack, what it trains on, and the weights of runs that nothing disturbed, by number of nodes."""

    stack: Stack
    data: str
    labelled: str | None
    queries: str | None
    undisturbed: dict[int, dict[str, str]] = field(default_factory=dict)

    def spec(self, nodes: int) -> dict[str, Any]:
        """A network that two cores train in seconds on eight ranks."""
        evaluation = {"labelled": self.labelled, "queries": self.queries, "every_epochs": EPOCHS, "limit": 500}
        return {
            "name": f"compose-{nodes}",
            "data": {"path": self.data, "image_size": 16, "limit": 1024},
            "backbone": {"name": "resnet18", "args": {"layers": [1, 1, 1, 0], "channels": [8, 16, 16, 16]}},
            "classifier": {"embedding_size": 16, "hardest_k": 5},
            "optimizer": {"global_batch_size": 32},
            "schedule": {"epochs": EPOCHS},
            "resources": {"nodes": nodes, "ranks_per_node": SLOTS, "device": "cpu"},
            "checkpoints": {"every_epochs": 0.5},
            "log_every_steps": 4,
            **({"evaluation": evaluation} if self.labelled else {}),
        }

    def start(self, nodes: int, name: str) -> Run:
        return self.stack.submit(self.spec(nodes), key=f"{name}-{time.time_ns()}")

    def in_the_middle(self, run: Run) -> Run:
        """The run some steps after a checkpoint, so that a further attempt has something to resume from and something to repeat."""

        def in_the_middle(run: Run) -> bool:
            saved, progress = run["checkpoint_step"], run["progress"]
            return run["status"] == "running" and bool(saved) and progress is not None and progress["step"] >= saved + 4

        return self.stack.wait_for(run["id"], in_the_middle, "the run is past its first checkpoint", 120)

    def compare(self, run: Run, nodes: int) -> str:
        """That a run's weights are those of the undisturbed run, bit for bit."""
        weights, expected = self.stack.weights(run), self.undisturbed[nodes]
        different = sorted(name for name in weights.keys() | expected.keys() if weights.get(name) != expected.get(name))
        check(not different, f"run {run['id']}: other weights than the undisturbed run's in {', '.join(different)}")
        return f"all {len(weights)} tensor files equal the undisturbed run's"


def undisturbed(bench: Bench, nodes: int) -> str:
    run = bench.stack.succeeded(bench.start(nodes, "undisturbed")["id"])
    check(len(set(run["workers"])) == nodes, f"the run was on {run['workers']}, not on {nodes} nodes")
    check(run["ranks"] == nodes * SLOTS and run["attempt"] == 1, f"{run['ranks']} ranks, attempt {run['attempt']}")
    bench.undisturbed[nodes] = bench.stack.weights(run)
    knn = f", kNN {run['knn']:.1f} % (random encoder {run['knn_random']:.1f} %)" if run["knn"] is not None else ""
    return f"{run['ranks']} ranks on {', '.join(run['workers'])}, {run['progress']['num_steps']} steps{knn}"


def killed_worker(bench: Bench, node_rank: int) -> str:
    """SIGKILL to a worker's container, which stays down: the run ends on the other nodes."""
    stack, run = bench.stack, bench.in_the_middle(bench.start(2, "killed"))
    victim = run["workers"][node_rank]
    stack.docker("kill", "--signal", "KILL", stack.container(victim))
    killed_at = run["progress"]["step"]
    done = stack.succeeded(run["id"])
    check(victim not in done["workers"] and done["attempt"] == 2, f"attempt {done['attempt']} ended on {done['workers']} without {victim}")
    same = bench.compare(done, 2)
    stack.compose("up", "-d", "--no-build", victim)
    return f"{victim} of {', '.join(run['workers'])} killed at step {killed_at}; ended on {', '.join(done['workers'])}; {same}"


def stopped_worker(bench: Bench) -> str:
    """`docker compose stop`: the run writes a checkpoint and goes back to the queue, without waiting for a lease to expire."""
    stack, run = bench.stack, bench.in_the_middle(bench.start(2, "stopped"))
    victim = run["workers"][1]
    stack.compose("stop", victim)
    attempts = stack.request("GET", f"/runs/{run['id']}/attempts")
    check(attempts[0]["outcome"] == "released", f"attempt 1 ended as {attempts[0]['outcome']}: {attempts[0]['reason']}")
    done = stack.succeeded(run["id"])
    resumed_at = stack.request("GET", f"/runs/{run['id']}/attempts")[-1]["start_step"]
    check(resumed_at >= run["progress"]["step"], f"attempt {done['attempt']} began at step {resumed_at}: steps were lost")
    same = bench.compare(done, 2)
    stack.compose("up", "-d", "--no-build", victim)
    return f"{victim} stopped after step {run['progress']['step']}, resumed at step {resumed_at} on {', '.join(done['workers'])}; {same}"


def restarted_api(bench: Bench) -> str:
    """A restart by the operator, then a crash that the restart policy mends: the job trains on and stays the same attempt."""
    stack, run = bench.stack, bench.in_the_middle(bench.start(2, "api"))
    stack.compose("restart", "api")
    between = stack.run(run["id"])
    stack.kill_inside("api")
    done = stack.succeeded(run["id"])
    check(done["attempt"] == 1, f"attempt {done['attempt']}: the run lost its nodes: {done['reason']}")
    steps = f"restarted at step {run['progress']['step']}, killed at step {between['progress']['step']}"
    return f"{steps}, still attempt 1; {bench.compare(done, 2)}"


def killed_redis(bench: Bench) -> str:
    """SIGKILL to Redis: the restart policy brings it back with all that the API had acknowledged."""
    stack, run = bench.stack, bench.in_the_middle(bench.start(2, "redis"))
    unplaceable = {**bench.spec(1), "resources": {"nodes": 64, "ranks_per_node": SLOTS, "device": "cpu"}}
    unplaceable["optimizer"] = {"global_batch_size": 64 * SLOTS * 4}
    queued = [stack.submit(unplaceable, key=f"kept-{number}-{time.time_ns()}") for number in range(20)]
    stack.kill_inside("redis")
    kept = [stack.run(one["id"])["status"] for one in queued]
    check(kept == ["queued"] * len(queued), f"of {len(queued)} acknowledged runs there are {kept}")
    for one in queued:
        stack.request("POST", f"/runs/{one['id']}/cancel")
    done = stack.succeeded(run["id"])
    check(done["attempt"] == 1, f"attempt {done['attempt']}: the run lost its nodes: {done['reason']}")
    return f"killed at step {run['progress']['step']}, {len(queued)} of {len(queued)} acknowledged runs there; {bench.compare(done, 2)}"


def cut_worker(bench: Bench, nodes: int) -> str:
    """A worker without a network for longer than its lease: its run goes on elsewhere; when it is back, it is refused and stops."""
    stack, run = bench.stack, bench.in_the_middle(bench.start(nodes, "cut"))
    victim = run["workers"][-1]
    stack.cut(victim)
    cut_at = time.monotonic()
    cut_off = stack.job_processes(victim)
    check(cut_off == 1 + SLOTS, f"{cut_off} processes on {victim}, which was just cut off: a launcher and {SLOTS} ranks should live there")
    try:
        again = stack.wait_for(
            run["id"], lambda run: run["attempt"] == 2 and run["status"] == "running", "the run goes on elsewhere", LEASE_SECONDS + 60
        )
        elsewhere = time.monotonic() - cut_at
        check(victim not in again["workers"], f"attempt 2 is on {again['workers']}, with {victim}, which is away")
        zombies = stack.job_processes(victim)
    finally:
        stack.mend(victim)
    mended_at = time.monotonic()
    stack.wait(lambda: stack.job_processes(victim) == 0, f"no process of attempt 1 is left on {victim}", 60)
    gone = time.monotonic() - mended_at
    done = stack.succeeded(run["id"])
    check(done["attempt"] == 2 and victim not in done["workers"], f"attempt {done['attempt']} ended on {done['workers']}")
    same = bench.compare(done, nodes)
    zombie = f"{cut_off} processes there then, {zombies} at its return, none {gone:.0f} s later"
    return f"{victim} cut off, attempt 2 ran after {elsewhere:.0f} s; {zombie}; {same}"


def as_good_as_new(bench: Bench) -> str:
    """After all that every worker takes part again, those with a new address included."""
    run = bench.stack.succeeded(bench.start(4, "again")["id"])
    check(run["attempt"] == 1, f"attempt {run['attempt']}: {run['reason']}")
    return f"{', '.join(run['workers'])}; {bench.compare(run, 4)}"


SCENARIOS: dict[str, Callable[[Bench], str]] = {
    "two nodes": lambda bench: undisturbed(bench, 2),
    "four nodes": lambda bench: undisturbed(bench, 4),
    "one node": lambda bench: undisturbed(bench, 1),
    "a worker killed": lambda bench: killed_worker(bench, 1),
    "the lead worker killed": lambda bench: killed_worker(bench, 0),
    "a worker stopped": stopped_worker,
    "the API restarted and killed": restarted_api,
    "Redis killed": killed_redis,
    "a worker cut off, two nodes": lambda bench: cut_worker(bench, 2),
    "a worker cut off, one node": lambda bench: cut_worker(bench, 1),
    "four nodes, after all that": as_good_as_new,
}
"""In order."""
UNDISTURBED = ("two nodes", "four nodes", "one node")
"""What the others compare with."""
