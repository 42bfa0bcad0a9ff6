"""One node's part of an attempt, from offer to exit report."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

import structlog

from service import processes
from service.client import ApiClient
from service.layout import RunDir, write_whole
from service.protocol import Command, ExitReport, Held, Instruction, Offer
from service.worker import storage
from service.worker.job import Job
from service.worker.link import Link
from service.worker.machine import gpu_processes, wait_for_gpus
from service.worker.offers import environment_of, launch_of, outside_roots
from service.worker.settings import JobCommand, Settings
from service.worker.shipping import Shipper
from service.worker.stall import Stall, StallDetector
from service.worker.verdict import LOST_PEERS, ToldTo, exit_report, stall_report

log = structlog.get_logger()

TURN_SECONDS = 0.2
UNWELCOME_SECONDS = 2.0
"""Between a refused report, which says that the attempt is over, and killing it: the next poll tells whether stacks are wanted."""
OTHERS_SECONDS = 3.0
"""For the other nodes of a gang to see a stall."""
RETRY_SECONDS, MAX_RETRY_SECONDS = 0.5, 5.0
_SEVERITY: dict[Command, int] = {"continue": 0, "stop": 1, "kill": 2, "abort": 3}


@dataclass(frozen=True)
class Ending:
    """How the job's processes came to their end."""

    exit_code: int
    told_to: ToldTo | None = None
    killed: bool = False
    stall: Stall | None = None


class Attempt(threading.Thread):
    """Spawns the launcher itself and outlives it, since the kernel kills the launcher when this thread ends.

    `tell`, `leave` and `abandon` are for the thread that polls.
    """

    def __init__(
        self,
        client: ApiClient,
        settings: Settings,
        command: JobCommand,
        offer: Offer,
        *,
        master_port: int | None,
        gpus: tuple[int, ...],
        storage_id: str,
        lease_seconds: float,
    ) -> None:
        """`master_port`: where the ranks meet; None where the lead found no free one."""
        super().__init__(name=f"{offer.run_id}/{offer.attempt}")
        self._client, self._settings, self._command, self._offer = client, settings, command, offer
        self._storage_id, self._lease_seconds = storage_id, lease_seconds
        self._run_dir = RunDir(settings.runs_dir / offer.run_id)
        self._directory = self._run_dir.attempt(offer.attempt)
        self._launch = launch_of(offer, settings, master_port, gpus)
        first = offer.node_rank * offer.ranks_per_node
        self._ranks = range(first, first + offer.ranks_per_node)
        logs = [self._directory.launcher_log(offer.node_rank), *(self._directory.rank_log(rank) for rank in self._ranks)]
        shipper = Shipper(client, offer.run_id, offer.attempt, self._directory, logs=logs, ships_events=offer.node_rank == 0)
        self._link = Link(client, offer.run_id, offer.attempt, shipper)
        self._told: Command = "continue"
        self._collects_stacks = self._is_leaving = self._is_abandoned = False
        self._written_pins: list[int] | None = None
        self._news = threading.Event()
        self.held = Held(
            run_id=offer.run_id, attempt=offer.attempt, master_port=master_port if offer.node_rank == 0 else None, pins=offer.pins
        )

    def tell(self, instruction: Instruction) -> None:
        """What the API wants done with it. A command may only become more severe."""
        if _SEVERITY[instruction.command] > _SEVERITY[self._told]:
            self._collects_stacks = instruction.collect_stacks
            self._told = instruction.command
        self.held = self.held.model_copy(update={"command": self._told, "pins": instruction.pins})
        self._news.set()

    def leave(self) -> None:
        """The worker stops: give the run back, with a checkpoint."""
        self._is_leaving = True
        self._news.set()

    def abandon(self) -> None:
        """Kill the job and report nothing: another worker process speaks in this one's name."""
        self._is_abandoned, self._told = True, "abort"
        self._news.set()

    def run(self) -> None:
        with structlog.contextvars.bound_contextvars(run_id=self._offer.run_id, attempt=self._offer.attempt):
            try:
                report = self._refusal() or self._execute()
            except OSError as error:
                report = self._report_lost(f"the worker could not run the job: {error}")
            except Exception as error:
                log.exception("attempt_failed")
                report = self._report_lost(f"the worker failed while it ran the job: {type(error).__name__}: {error}")
            log.info("job_ended", outcome=report.outcome, exit_code=report.exit_code, reason=report.reason)
            self._deliver(report)

    def _refusal(self) -> ExitReport | None:
        """Why the job is not to run here at all."""
        offer, settings = self._offer, self._settings
        if outside := outside_roots(offer.spec, settings.data_roots):
            return ExitReport(worker=settings.name, outcome="faulty", reason=outside)
        if offer.node_rank == 0 and not self._launch.master_port:
            ports = f"{settings.ports[0]}-{settings.ports[-1]}" if settings.ports else "all"
            return self._report_lost(f"no TCP port is free for the ranks to meet, of {ports} (--ports)")
        storage.check_storage(settings.runs_dir, self._storage_id)
        newest = storage.raise_fence(self._run_dir, offer.attempt)
        if newest == offer.attempt:
            return None
        # Or the store was restored from a backup: it counts up to the fence, which is nobody's failure.
        return ExitReport(worker=settings.name, outcome="released", reason=f"attempt {newest} of the run has begun already")

    def _execute(self) -> ExitReport:
        """Run the job to its end. However this returns or raises, what could be killed of its processes is."""
        offer, settings, launch = self._offer, self._settings, self._launch
        if left := processes.kill_attempt(offer.run_id, before=offer.attempt):
            log.warning("older_attempt_killed", pids=left)
        self._directory.path.mkdir(parents=True, exist_ok=True)
        write_whole(self._run_dir.spec, offer.spec.model_dump_json(indent=2))
        self._write_pins()
        others = gpu_processes(launch.gpus) if launch.gpus else set()
        job = Job(
            offer.run_id,
            offer.attempt,
            self._command(launch),
            environment_of(offer, settings, launch),
            self._directory.launcher_log(offer.node_rank),
            stop_file=self._directory.stop,
            grace_seconds=settings.grace_seconds,
            worker=settings.mark,
        )
        log.info("job_started", node_rank=offer.node_rank, num_nodes=offer.num_nodes, ranks_per_node=offer.ranks_per_node)
        note = ""
        try:
            ending = self._stay_with(job)
        finally:
            try:
                job.kill()
            except TimeoutError as error:  # the run must go on elsewhere; the fence keeps the files safe
                note = f"; {error}"
            if launch.gpus and (left_on_gpus := wait_for_gpus(launch.gpus, others)):
                note += f"; the memory of GPUs {launch.gpus} is still held by processes {sorted(left_on_gpus)}"
            if note:
                log.error("processes_left", why=note)
        report = self._verdict(ending)
        return report.model_copy(update={"reason": report.reason[: 4000 - len(note)] + note})

    def _stay_with(self, job: Job) -> Ending:
        """Until its launcher has ended or was killed."""
        stall_detector = StallDetector(self._directory, self._ranks, self._settings.stall_seconds)
        told_to: ToldTo | None = None
        unwelcome_since: float | None = None
        while (code := job.poll()) is None:
            if self._told in ("kill", "abort"):
                if self._collects_stacks:
                    job.collect_stacks()
                return Ending(job.kill(), told_to="stopped" if self._told == "kill" else "aborted")
            if told_to is None and (self._told == "stop" or self._is_leaving):
                told_to = "stopped" if self._told == "stop" else "released"
                job.stop()
            if told_to is None and (stall := stall_detector.look()):
                job.collect_stacks()
                if self._launch.num_nodes > 1:  # the other nodes are stuck too, and their ranks may fail once these are gone
                    self._wait_for_abort(OTHERS_SECONDS)
                return Ending(job.kill(), stall=stall)
            self._write_pins()
            if not self._link.turn():
                unwelcome_since = unwelcome_since or time.monotonic()
                if time.monotonic() - unwelcome_since > UNWELCOME_SECONDS:
                    self._told = "abort"
            self._news.wait(TURN_SECONDS)
            self._news.clear()
        return Ending(code, told_to=told_to, killed=job.killed)

    def _write_pins(self) -> None:
        """Where they have changed. Only the lead: another node's may be older."""
        pins = self.held.pins
        if pins == self._written_pins or self._offer.node_rank > 0:
            return
        self._written_pins = pins
        try:
            storage.write_pins(self._run_dir, pins)
        except OSError as error:  # no reason to end a job
            log.error("pins_not_written", why=str(error))

    def _verdict(self, ending: Ending) -> ExitReport:
        if ending.stall:
            return stall_report(self._settings.name, self._directory, ending.stall.reason, ending.stall.rank)
        code, told_to = ending.exit_code, ending.told_to
        return exit_report(self._settings.name, code, self._directory, self._launch, told_to=told_to, killed=ending.killed)

    def _deliver(self, report: ExitReport) -> None:
        """Until the API has it. Gives up when the worker leaves and the API stays away for the grace."""
        if report.reason.startswith(LOST_PEERS):
            # The node that is at fault, or its lease, tells why; the first report of a failed attempt names the node to avoid.
            self._wait_for_abort(self._lease_seconds + 1.0)
        fails_others = self._offer.num_nodes > 1 and report.outcome in ("faulty", "crashed", "lost")
        delay, give_up = RETRY_SECONDS, None
        while not self._is_abandoned and not self._link.deliver(report, urgent=fails_others or self._told == "abort"):
            if self._is_leaving:
                give_up = give_up or time.monotonic() + self._settings.grace_seconds
                if time.monotonic() > give_up:
                    log.error("report_not_delivered", remedy="the run goes back to the queue when this worker's lease expires")
                    return
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, MAX_RETRY_SECONDS)

    def _wait_for_abort(self, seconds: float) -> None:
        """At most so long; what another node reports ends the attempt here as well."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._told != "abort" and not self._is_leaving and self._link.turn():
            self._news.wait(TURN_SECONDS)
            self._news.clear()

    def _report_lost(self, reason: str) -> ExitReport:
        return ExitReport(worker=self._settings.name, outcome="lost", reason=reason[:4000])
