"""Gangs: several worker processes and one run."""

from __future__ import annotations

import os
import signal
import time

import pytest

from service import processes
from service.lifecycle import Status
from service.runs import Run
from tests.conftest import wait_until
from tests.worker.conftest import Service


@pytest.fixture
def gang(service: Service) -> Service:
    """Two workers of two slots."""
    for name in ("w1", "w2"):
        service.start_worker(name, 2)
    return service


def members(service: Service, run: Run, attempt: int = 1) -> list[dict[str, object]]:
    found: list[dict[str, object]] = service.get(f"/runs/{run.id}/attempts")[attempt - 1]["members"]
    return found


def test_two_workers_run_one_job_and_each_ships_its_own_logs(gang: Service) -> None:
    """They meet at the lead's port; the lead ships the events; every log arrives whole."""
    run = gang.submit("steady", steps=60, nodes=2, ranks_per_node=2)
    began = time.time()
    started = gang.wait(run, Status.RUNNING)
    assert time.time() - began < 6.0
    assert started.workers in (["w1", "w2"], ["w2", "w1"])
    run = gang.wait(run, Status.SUCCEEDED)
    assert run.attempt == 1
    assert gang.steps(run.id) == list(range(1, 61))
    logs = {log.name: log.size for log in gang.client.log_index(run.id)}
    assert {f"rank-{rank}.log" for rank in range(4)} <= set(logs)
    for rank in range(4):
        assert gang.log(run, f"rank-{rank}.log") == gang.attempt_file(run, 1, f"rank-{rank}.log").read_bytes()
    wait_until(lambda: [member["state"] for member in members(gang, run)] == ["finished", "finished"], "both say that it finished")


def test_the_start_of_a_gang_takes_no_longer_than_its_processes(gang: Service) -> None:
    """The lead's port travels with its next poll, not with its lease."""
    wait_until(lambda: len(gang.client.workers()) == 2, "both workers poll")
    run = gang.submit("steady", nodes=2, ranks_per_node=1)
    run = gang.wait(run, Status.RUNNING)
    attempt = gang.get(f"/runs/{run.id}/attempts")[0]
    assert attempt["started_at"] - attempt["placed_at"] < 2.5


@pytest.mark.parametrize("node", [0, 1])
def test_a_rank_that_dies_ends_the_attempt_on_all_nodes(gang: Service, node: int) -> None:
    """Its node names the signal, also where the other one noticed first; no process is left, and the next attempt ends well."""
    gang.kill_api()
    gang.lease_seconds = 8.0  # for so long a node that only lost its peers leaves the word to the one at fault, however busy the machine
    gang.start_api()
    run = gang.submit("steady", steps=250, nodes=2, ranks_per_node=2)
    run = gang.wait(run, Status.RUNNING)
    wait_until(lambda: len(gang.steps(run.id)) > 10, "it trains")
    worker = f"{run.workers[node]} {gang.runs_dir}"
    os.kill(processes.rank_processes(run.id, 1, worker)[-1], signal.SIGKILL)
    assert "was ended by signal 9" in gang.entry(run, "lost", 20).reason
    wait_until(lambda: "was ended by signal 9" in gang.client.attempts(run.id)[0].members[node].reason, "its node says so", seconds=20)
    wait_until(lambda: processes.attempt_processes(run.id, 1) == [], "no process is left", seconds=3)
    assert gang.wait(run, Status.SUCCEEDED, seconds=30).attempt == 2


def test_a_worker_that_dies_ends_the_attempt_on_the_other_node(gang: Service) -> None:
    """Its lease expires; the other node's processes are killed before its slots are free."""
    run = gang.submit("steady", nodes=2, ranks_per_node=2)
    run = gang.wait(run, Status.RUNNING)
    victim = gang.children[1 if run.workers[1] == "w1" else 2]
    victim.kill()
    victim.wait()
    assert run.workers[1] in gang.entry(run, "lost", 20).reason
    wait_until(lambda: processes.attempt_processes(run.id) == [], "no process is left", seconds=3)
    gang.start_worker("w3", 2)
    wait_until(lambda: gang.client.run(run.id).attempt >= 2, "the gang starts again")


@pytest.mark.parametrize("node", [0, 1])
def test_sigterm_to_one_worker_checkpoints_and_requeues_the_whole_gang(gang: Service, node: int) -> None:
    """All ranks stop at one step, whichever node leaves."""
    run = gang.submit("steady", nodes=2, ranks_per_node=1)
    run = gang.wait(run, Status.RUNNING)
    leaver = gang.children[1 if run.workers[node] == "w1" else 2]
    leaver.send_signal(signal.SIGTERM)
    assert leaver.wait(10) == 0
    run = gang.wait(run, Status.QUEUED)
    assert gang.client.history(run.id)[-1].event == "released"
    assert run.checkpoint_step
    wait_until(lambda: processes.attempt_processes(run.id) == [], "no process is left")


def test_a_cancelled_gang_stops_everywhere_with_a_checkpoint(gang: Service) -> None:
    """And its slots are free again."""
    run = gang.submit("steady", nodes=2, ranks_per_node=2)
    gang.wait(run, Status.RUNNING)
    gang.request(run, "cancel")
    run = gang.wait(run, Status.CANCELLED)
    assert run.checkpoint_step
    wait_until(lambda: all(not worker.holds for worker in gang.client.workers()), "the slots are free")
    assert processes.attempt_processes(run.id) == []


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("stuck", ("1", "60")), ("wedged", ("1", "1"))],
    ids=["told by the other node", "seen by both, of which one would lose the other"],
)
def test_a_stall_collects_the_stacks_of_every_node(service: Service, name: str, seconds: tuple[str, str]) -> None:
    """The first node to notice ends the attempt, and gives the others the time to notice as well."""
    for number, stall_seconds in enumerate(seconds, 1):
        service.start_worker(f"w{number}", 1, "--stall-seconds", stall_seconds)
    run = service.submit(name, nodes=2, ranks_per_node=1)
    service.wait(run, Status.RUNNING)
    assert "no rank of this node moved" in service.entry(run, "lost", 20).reason
    for rank in (0, 1):
        wait_until(lambda rank=rank: b"in hang" in service.log(run, f"rank-{rank}.log"), f"rank {rank}'s stacks are stored")
    wait_until(lambda: processes.attempt_processes(run.id, 1) == [], "no process is left")
