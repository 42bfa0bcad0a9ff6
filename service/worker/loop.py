"""The worker's loop: claim a run, execute one attempt of it, claim the next.

One thread. While a job runs, each turn polls it, heartbeats when due, and ships what is new; an API that does not answer
costs at most the client's timeout per turn, and the job knows nothing of it.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import structlog

from service import processes
from service.client import ApiClient
from service.errors import ApiProblem, AttemptLost, MillionwayError
from service.launch import job_command, job_environment
from service.layout import RunDir, write_whole
from service.protocol import Claim, ClaimRequest, ExitReport
from service.spec import RunSpec
from service.worker.job import Job
from service.worker.link import Link, Patience
from service.worker.machine import Device, describe_device, gpu_names
from service.worker.shipping import Shipper
from service.worker.verdict import exit_report

log = structlog.get_logger()

TURN_SECONDS = 0.2
TRANSIENT = (408, 429)
"""Refusals that do not last: the request took too long, or there are too many."""


class WorkerRefused(MillionwayError):
    """The API does not take this worker's name or its claims; asking again would not help."""


class Command(Protocol):
    """The job's command line; service.launch.job_command is the one in use."""

    def __call__(self, spec: RunSpec, run_dir: Path, attempt: int) -> list[str]: ...


@dataclass(frozen=True)
class Settings:
    name: str
    runs_dir: Path
    slots: int
    """Ranks that may run at once."""
    device: Device = "auto"
    grace_seconds: float = 30.0
    """Between SIGTERM and SIGKILL; PyTorch's launcher itself allows its ranks 30 s."""
    claim_seconds: float = 1.0
    """Pause between two claims without a run, and between two tries while the API is away."""


class Worker:
    """Executes one run at a time, on at most `slots` ranks."""

    def __init__(self, client: ApiClient, settings: Settings, command: Command = job_command) -> None:
        self._client, self._settings, self._command = client, settings, command
        self._stopping = False
        self._gpus: list[str] = []

    def stop(self) -> None:
        """Ask the loop to end: a running job gets SIGTERM and its run goes back to the queue. Safe in a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Claim and execute until told to stop. Raises MillionwayError when the API refuses the worker itself."""
        settings = self._settings
        self._gpus = gpu_names() if settings.device != "cpu" else []  # once: a driver under load takes long to answer
        device = describe_device(settings.device, self._gpus)
        request = ClaimRequest(host=platform.node(), slots=settings.slots, device=device)
        log.info("worker_started", worker=settings.name, slots=request.slots, device=request.device, api=self._client.url)
        patience = Patience()
        while not self._stopping:
            claim = patience.call(lambda: self._claim(request))
            if claim is None:
                time.sleep(settings.claim_seconds)
                continue
            with structlog.contextvars.bound_contextvars(run_id=claim.run_id, attempt=claim.attempt):
                try:
                    self._execute(claim)
                except AttemptLost as lost:
                    log.warning("attempt_lost", why=str(lost))
        log.info("worker_stopped", worker=settings.name)

    def _claim(self, request: ClaimRequest) -> Claim | None:
        try:
            return self._client.claim(self._settings.name, request)
        except ApiProblem as problem:
            if problem.status >= 500 or problem.status in TRANSIENT:
                raise
            name = self._settings.name
            raise WorkerRefused(f"the API at {self._client.url} refuses the worker {name!r}: {problem}") from None

    def _execute(self, claim: Claim) -> None:
        """One attempt, from claim to exit report."""
        run_dir = RunDir(self._settings.runs_dir / claim.run_id)
        shipper = Shipper(self._client, claim.run_id, claim.attempt, run_dir.attempt(claim.attempt))
        link = Link(self._client, claim, shipper)
        try:
            report = self._run_job(claim, run_dir, link)
        except OSError as error:
            report = ExitReport(outcome="crashed", reason=f"the worker could not run the job: {error}")
        log.info("job_ended", outcome=report.outcome, exit_code=report.exit_code, reason=report.reason)
        give_up: float | None = None
        while not link.deliver(report):
            if self._stopping:
                give_up = give_up or time.monotonic() + self._settings.grace_seconds
                if time.monotonic() > give_up:
                    log.error("report_not_delivered", remedy="the run goes back to the queue when its lease expires")
                    return
            time.sleep(self._settings.claim_seconds)

    def _run_job(self, claim: Claim, run_dir: RunDir, link: Link) -> ExitReport:
        """Start the job and stay with it to its end. However this returns or raises, none of its processes is left."""
        directory = run_dir.attempt(claim.attempt)
        link.turn()  # the API learns that its answer arrived, before anything that may take long
        if left := processes.kill_attempt(claim.run_id):
            log.warning("older_attempt_killed", pids=left)
        directory.path.mkdir(parents=True, exist_ok=True)
        write_whole(run_dir.spec, claim.spec.model_dump_json(indent=2))
        link.turn()
        job = Job(
            claim.run_id,
            claim.attempt,
            self._command(claim.spec, run_dir.path, claim.attempt),
            job_environment(claim.spec, has_gpu=bool(self._gpus)),
            directory.launcher_log,
            grace_seconds=self._settings.grace_seconds,
        )
        log.info("job_started", num_ranks=claim.spec.resources.ranks_per_node)
        told_to: Literal["stopped", "released"] | None = None
        try:
            while (code := job.poll()) is None:
                if told_to is None and (link.cancelled or self._stopping):
                    told_to = "stopped" if link.cancelled else "released"
                    job.stop()
                link.turn()
                time.sleep(TURN_SECONDS)
        finally:
            job.kill()
        return exit_report(code, directory, told_to=told_to, killed=job.killed)
