"""What the store must do, written down once more in plain Python: the oracle of test_store_machine.py.

It knows no clock, no Redis and no order of messages; where the script must refuse, it raises Refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from service.lifecycle import LIVE, STOPPING, TRANSITIONS, Event, Status
from service.protocol import ExitReport, Poll
from tests.service.machine.records import Attempt, Owner, Part, Refused, Run, Slots, Worker


class Model:
    def __init__(self, workers: Mapping[str, int]) -> None:
        self.workers = {name: Worker(num_slots) for name, num_slots in workers.items()}
        self.runs: dict[str, Run] = {}
        self.outcomes: Counter[str] = Counter()
        self.charged: Counter[str] = Counter()
        """Slots of ended attempts by owner; each attempt once."""

    def queue(self, owner: str) -> list[str]:
        waiting = [run for run in self.runs.values() if run.owner == owner and run.status == Status.QUEUED]
        return [run.id for run in sorted(waiting, key=lambda run: (-run.priority, run.sequence))]

    def placeable(self) -> set[str]:
        """Queued, and no worker that is heard of has processes of it."""
        busy = {run_id for worker in self.workers.values() if worker.is_heard for run_id, _ in worker.attempts()}
        return {run.id for run in self.runs.values() if run.status == Status.QUEUED} - busy

    def unheld(self) -> set[Owner]:
        return {
            (run.id, len(run.attempts))
            for run in self.runs.values()
            if run.status in LIVE and any(part.state is None for part in run.attempts[-1].parts.values())
        }

    # What people and the scheduler do

    def request(self, run: Run, request: str) -> None:
        match request, run.status:
            case ("pause", Status.PAUSING | Status.PAUSED) | ("cancel", Status.CANCELLING) | ("cancel" | "kill", Status.CANCELLED):
                pass
            case "resume", Status.QUEUED | Status.STARTING | Status.RUNNING | Status.PREEMPTING:
                pass
            case "kill", _:
                run.happens(Event.CANCEL)
                run.is_killed = True
            case _:
                run.happens(Event(request))

    def place(self, run: Run, slots: Mapping[str, Slots]) -> bool:
        last = (run.id, len(run.attempts))
        if run.status != Status.QUEUED or any(worker.is_heard and last in worker.attempts() for worker in self.workers.values()):
            return False
        for name, wanted in slots.items():
            worker = self.workers[name]
            if not worker.is_heard or worker.drain or worker.is_leaving:
                return False
            if any(slot in worker.owned or slot >= worker.num_slots for slot in wanted):
                return False
        run.attempts.append(Attempt({name: Part(wanted) for name, wanted in slots.items()}))
        for name, wanted in slots.items():
            self.workers[name].owned |= dict.fromkeys(wanted, (run.id, len(run.attempts)))
        run.last_seq = 0
        run.happens(Event.PLACE)
        return True

    def stop(self, run: Run, cause: str) -> bool:
        if (run.status, Event.PREEMPT) not in TRANSITIONS:
            return False
        run.preemptions += cause == "preempted"
        run.happens(Event.PREEMPT)
        return True

    # What workers say

    def poll(self, name: str, poll: Poll) -> tuple[set[Owner], dict[Owner, tuple[str, bool]]]:
        """What is offered, and what is told of each attempt that the worker says it holds."""
        worker = self.workers[name]
        if poll.incarnation in worker.former:
            raise Refused("WorkerReplaced")
        is_new = worker.incarnation != poll.incarnation
        if worker.incarnation and is_new:
            worker.former.add(worker.incarnation)
            for owner in worker.attempts():
                self._let_go(name, owner)
                if self._holds(owner):
                    self._lose(self.runs[owner[0]], Event.LOST)
        worker.has_lease, worker.is_late = True, False
        if not is_new and poll.number < worker.number:
            return set(), {}
        worker.incarnation, worker.number, worker.is_leaving = poll.incarnation, poll.number, poll.leaving
        held = {(one.run_id, one.attempt): one for one in poll.held}
        offers: set[Owner] = set()
        for owner in worker.attempts():
            run, attempt = self.runs[owner[0]], self._attempt(owner)
            part = attempt.parts[name]
            if not self._holds(owner):
                if owner not in held:
                    self._let_go(name, owner)
            elif owner in held:
                part.state = "held"
                attempt.has_port = attempt.has_port or name == attempt.lead
            elif part.state == "held":
                self._let_go(name, owner)
                self._lose(run, Event.LOST, name)
            elif run.status in STOPPING or poll.leaving:
                worker.free(owner)
                self._end(run, Event.STOPPED if run.status in STOPPING else Event.RELEASED)
            elif attempt.lead == name or attempt.has_port:
                offers.add(owner)
        return offers, {owner: self._told(worker, owner) for owner in held}

    def exit(self, run: Run, number: int, report: ExitReport) -> None:
        attempt = run.attempts[number - 1] if 1 <= number <= len(run.attempts) else None
        if attempt is None or report.worker not in attempt.parts:
            raise Refused("AttemptLost")
        part = attempt.parts[report.worker]
        if part.has_reported:
            return
        part.state, part.has_reported = report.outcome, True
        attempt.is_stalled = attempt.is_stalled or report.stalled
        self.workers[report.worker].free((run.id, number))
        event = Event(report.outcome)
        if not run.is_held(number):
            if event == Event.FAULTY and number == len(run.attempts) and (run.status, event) in TRANSITIONS:
                run.happens(event, "faulty")
        elif event in (Event.CRASHED, Event.LOST):
            self._lose(run, event, report.worker, report.signature)
        elif event == Event.FAULTY:
            self._end(run, event, "faulty")
        elif report.worker == attempt.lead:
            if event != Event.FINISHED:
                event = Event.STOPPED if run.status in STOPPING else Event.RELEASED
            self._end(run, event, "finished")

    def events(self, run: Run, number: int, events: Sequence[tuple[int, str, int]]) -> None:
        """Each: its number, started | progress | checkpointed, and a step."""
        if not run.is_held(number):
            raise Refused("AttemptLost")
        reached = run.last_seq
        for seq, _, _ in events:
            if seq > reached + 1:
                raise Refused("EventGap")
            reached = max(reached, seq)
        before = run.checkpoint_step
        for seq, kind, step in events:
            if seq <= run.last_seq:
                continue
            run.last_seq = seq
            if kind == "checkpointed":
                run.checkpoint_step = step
                if step > before:
                    run.failed.clear()
            else:
                run.step = step
            if kind == "started" and run.status == Status.STARTING:
                run.happens(Event.STARTED)

    # What silence means

    def expire(self) -> Iterator[str]:
        """The runs that are lost."""
        for name, worker in sorted(self.workers.items()):
            if worker.has_lease and worker.is_late:
                worker.has_lease = worker.is_late = False
                for owner in sorted(worker.attempts()):
                    if self._holds(owner):
                        self._attempt(owner).parts[name].state = "gone"
                        self._lose(self.runs[owner[0]], Event.LOST, name)
                        yield owner[0]

    def gang_late(self, run: Run) -> None:
        """A gang that waited too long for nodes to take it."""
        missing = [name for name, part in run.attempts[-1].parts.items() if part.state is None]
        self._lose(run, Event.LOST, missing[0])

    def _attempt(self, owner: Owner) -> Attempt:
        return self.runs[owner[0]].attempts[owner[1] - 1]

    def _holds(self, owner: Owner) -> bool:
        return self.runs[owner[0]].is_held(owner[1])

    def _told(self, worker: Worker, owner: Owner) -> tuple[str, bool]:
        run = self.runs[owner[0]]
        if owner not in worker.attempts() or not self._holds(owner):
            return "abort", self._attempt(owner).is_stalled
        if run.status == Status.CANCELLING and run.is_killed:
            return "kill", False
        return "stop" if run.status in STOPPING else "continue", False

    def _let_go(self, name: str, owner: Owner) -> None:
        self.workers[name].free(owner)
        self._attempt(owner).parts[name].state = "gone"

    def _lose(self, run: Run, event: Event, worker: str | None = None, signature: str | None = None) -> None:
        budget = "infrastructure" if event == Event.LOST else "crashes"
        run.failed[budget] += 1
        error = (signature, run.step) if signature else None
        termination = None
        if error and error == run.last_error:
            event, termination = Event.EXHAUSTED, "repeated_error"
        elif run.failed[budget] > run.retries[budget]:
            event, termination = Event.EXHAUSTED, f"{budget}_exhausted"
        run.last_error = error or run.last_error
        run.avoid |= {worker} if worker else set()
        self._end(run, event, termination)

    def _end(self, run: Run, event: Event, termination: str | None = None) -> None:
        attempt = run.attempts[-1]
        assert attempt.outcome is None, "an attempt ends once"
        attempt.outcome = event
        self.outcomes[event] += 1
        self.charged[run.owner] += sum(len(part.slots) for part in attempt.parts.values())
        run.happens(event, termination)
