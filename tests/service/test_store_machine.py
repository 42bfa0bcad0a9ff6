"""The store against a model of itself, over random sequences of what can happen, and its indices against its records."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from service.lifecycle import LIVE, TERMINAL, Status
from tests.service.machine.records import Attempt, Owner, Run
from tests.service.machine.rules import AGO, OWNERS, StoreMachine
from tests.service.machine.workers import WORKERS

UNVERSIONED = {"version", "updated_at"}


class CheckedMachine(StoreMachine):
    @invariant()
    def everything_is_right(self) -> None:
        if hasattr(self, "model"):
            self.read()
            self.every_run_is_where_the_model_has_it()
            self.every_attempt_is_as_the_model_has_it()
            self.slots_are_owned_by_who_may_run_there()
            self.processes_never_share_a_slot()
            self.the_indices_agree_with_the_records()
            self.each_attempt_is_charged_once()

    def read(self) -> None:
        """All that is in Redis, at once."""
        runs = self.model.runs.values()
        attempts = [(run.id, number) for run in runs for number in range(len(run.attempts), 0, -1)[:2]]
        sets = ["runs", "unheld", "leases", *(f"status:{status}" for status in Status), *(f"queue:{owner}" for owner in OWNERS)]
        hashes = [*(f"run:{run.id}" for run in runs), *(f"attempt:{id}:{number}" for id, number in attempts)]
        hashes += [*(f"worker:{name}" for name in WORKERS), "outcomes", "usage"]
        with self.redis.pipeline(transaction=False) as pipeline:
            for key in sets:
                pipeline.zrange(f"millionway:{key}", 0, -1)
            for key in hashes:
                pipeline.hgetall(f"millionway:{key}")
            pipeline.smembers("millionway:owners")
            *found, self.owners = pipeline.execute()
        self.sets: dict[str, list[str]] = dict(zip(sets, found[: len(sets)], strict=True))
        self.hashes: dict[str, dict[str, str]] = dict(zip(hashes, found[len(sets) :], strict=True))
        self.owned: dict[str, dict[int, Owner]] = {}
        for name in WORKERS:
            slots = {int(field[5:]): owner.split("/") for field, owner in self.hashes[f"worker:{name}"].items() if field[:5] == "slot:"}
            self.owned[name] = {slot: (run_id, int(number)) for slot, (run_id, number) in slots.items()}

    def every_run_is_where_the_model_has_it(self) -> None:
        for run in self.model.runs.values():
            record = self.hashes[f"run:{run.id}"]
            found = {
                "status": record["status"],
                "attempt": int(record["attempt"]),
                "priority": int(record["priority"]),
                "infrastructure": int(record["failed_infrastructure"]),
                "crashes": int(record["failed_crashes"]),
                "termination": record.get("termination_reason"),
                "is_killed": record.get("kill") == "1",
                "last_seq": int(record["last_seq"]),
                "checkpoint_step": int(record.get("checkpoint_step", -1)),
                "preemptions": int(record["preemptions"]),
                "avoid": set(json.loads(record.get("avoid", "{}"))),
            }
            assert found == {
                "status": run.status,
                "attempt": len(run.attempts),
                "priority": run.priority,
                "infrastructure": run.failed["infrastructure"],
                "crashes": run.failed["crashes"],
                "termination": run.termination,
                "is_killed": run.is_killed,
                "last_seq": run.last_seq,
                "checkpoint_step": run.checkpoint_step,
                "preemptions": run.preemptions,
                "avoid": run.avoid,
            }
            self.check_version(run, record)
            if run.status in TERMINAL:
                assert record["reason"]
                assert record["finished_at"]

    def check_version(self, run: Run, record: dict[str, str]) -> None:
        """It grows with each change, and only then; an end is never left."""
        before = self.seen.get(run.id, {"version": "0", "status": "queued"})
        is_changed = {name: text for name, text in record.items() if name not in UNVERSIONED} != {
            name: text for name, text in before.items() if name not in UNVERSIONED
        }
        assert (int(record["version"]) > int(before["version"])) == is_changed
        assert before["status"] not in TERMINAL or record["status"] == before["status"]
        self.seen[run.id] = record

    def every_attempt_is_as_the_model_has_it(self) -> None:
        for key in self.hashes:
            if not key.startswith("attempt:"):
                continue
            record, (_, run_id, number) = self.hashes[key], key.split(":")
            attempt = self.attempt(run_id, int(number))
            assert [(member["worker"], tuple(member["slots"])) for member in json.loads(record["members"])] == [
                (name, part.slots) for name, part in attempt.parts.items()
            ]
            states = [(record.get(f"state:{node}"), f"exit:{node}" in record) for node in range(len(attempt.parts))]
            assert states == [(part.state, part.has_reported) for part in attempt.parts.values()]
            assert (record.get("outcome"), "master_port" in record) == (attempt.outcome, attempt.has_port)

    def slots_are_owned_by_who_may_run_there(self) -> None:
        """By a live attempt, or by one whose worker has not said that its processes are gone."""
        assert self.owned == {name: worker.owned for name, worker in self.model.workers.items()}
        for name, slots in self.owned.items():
            for slot, (run_id, number) in slots.items():
                part = self.attempt(run_id, number).parts[name]
                assert slot in part.slots
                assert part.state in ((None, "held") if self.model.runs[run_id].is_held(number) else (None, "held", "gone"))
                assert not part.has_reported
        for run in self.model.runs.values():
            if run.status in LIVE:  # somebody is watched who will end it, or fall silent
                lead = run.attempts[-1].lead
                assert (run.id, len(run.attempts)) in self.owned[lead].values()
                assert lead in self.sets["leases"]

    def processes_never_share_a_slot(self) -> None:
        """Nor does one run on a slot that the store takes for free, or for another's."""
        for name, node in self.nodes.items():
            running = node.running()
            slots = [slot for of in running.values() for slot in of]
            assert len(slots) == len(set(slots))
            for owner, of in running.items():
                assert all(self.owned[name].get(slot) == owner for slot in of), (owner, self.owned[name])

    def the_indices_agree_with_the_records(self) -> None:
        runs, workers = self.model.runs.values(), self.model.workers.items()
        for status in Status:
            expected = [run.id for run in runs if run.status == status]
            assert self.sets[f"status:{status}"] == expected
        for owner in OWNERS:
            assert self.sets[f"queue:{owner}"] == self.model.queue(owner)
        assert self.owners == {run.owner for run in runs if run.status == Status.QUEUED}
        assert self.sets["runs"] == [run.id for run in runs]
        assert set(self.sets["unheld"]) == {f"{id}/{number}" for id, number in self.model.unheld()}
        assert set(self.sets["leases"]) == {name for name, worker in workers if worker.has_lease}
        assert self.hashes["outcomes"] == {event: str(times) for event, times in self.model.outcomes.items()}

    def each_attempt_is_charged_once(self) -> None:
        for owner, text in self.hashes["usage"].items():
            assert abs(float(text.split()[0]) / AGO - self.model.charged[owner]) < 0.5
        assert set(self.hashes["usage"]) == set(self.model.charged)

    def attempt(self, run_id: str, number: int) -> Attempt:
        return self.model.runs[run_id].attempts[number - 1]


@pytest.fixture
def hasty_url(redis_url: str) -> Iterator[str]:
    """A server that does not wait for its disk: thousands of calls follow."""
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        client.config_set("appendfsync", "no")
        yield redis_url
        client.config_set("appendfsync", "always")


def test_the_store_does_what_its_model_does_whatever_happens(hasty_url: str) -> None:
    """No slot owned twice, one live attempt per run, no stale report accepted, no end left, no run forgotten."""
    run_state_machine_as_test(
        type("Machine", (CheckedMachine,), {"url": hasty_url}),
        settings=settings(
            max_examples=60,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            report_multiple_bugs=False,
        ),
    )
