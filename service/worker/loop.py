"""The worker's loop: say what it holds, learn what to start and what to stop.

The main thread polls; each attempt has a thread of its own. While the API is away the jobs go on, and know nothing of it.
"""

from __future__ import annotations

import math
import platform
import random
import secrets
import time

import structlog

from service import processes
from service.client import ApiClient
from service.errors import ApiProblem, MillionwayError
from service.launch import job_command
from service.protocol import MAX_WAIT_SECONDS, Offer, Poll, PollReply
from service.worker.attempt import Attempt
from service.worker.link import Patience
from service.worker.machine import describe_device, pick_port, visible_gpus
from service.worker.settings import JobCommand, Settings
from service.worker.storage import storage_id

log = structlog.get_logger()

POLLS_PER_LEASE = 4
MIN_POLL_SECONDS = 0.05
"""Between two polls, whatever the API answers."""
LEAVING_SECONDS = 0.2
"""Between two polls while the last jobs write their checkpoints."""
RETRY_SECONDS, MAX_RETRY_SECONDS = 0.5, 5.0
REFUSED_SECONDS = 60.0
"""How long a worker that was welcome before asks again when it is refused."""


class WorkerRefused(MillionwayError):
    """The API does not take this worker; asking again would not help."""


class Interrupted(Exception):
    """Raised by `stop` out of the poll that waits in the main thread."""


class Worker:
    """Executes parts of attempts, at most `slots` ranks at once; what it gets is the scheduler's to decide."""

    def __init__(self, client: ApiClient, settings: Settings, command: JobCommand = job_command) -> None:
        self._client, self._settings, self._command = client, settings, command
        self._incarnation = secrets.token_hex(8)
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._is_leaving = self._is_waiting = False
        self._num_polls = 0
        self._lease_seconds: float | None = None
        self._refused_since: float | None = None

    def stop(self) -> None:
        """Ask the loop to end: jobs write a checkpoint and their runs go back to the queue. For a signal handler in the loop's thread."""
        self._is_leaving = True
        if self._is_waiting:
            self._is_waiting = False
            raise Interrupted

    def run(self) -> None:
        """Poll and execute until told to stop. Raises WorkerRefused, and OSError where the runs directory cannot be used."""
        settings = self._settings
        if left := processes.kill_attempt(worker=settings.mark):
            log.warning("killed_what_an_earlier_process_left", pids=left)
        self._storage_id = storage_id(settings.runs_dir)
        self._gpus = visible_gpus() if settings.device != "cpu" else {}  # once: a driver under load takes long to answer
        self._device = describe_device(list(self._gpus.values()))
        log.info("worker_started", worker=settings.name, slots=settings.slots, device=self._device, api=self._client.url)
        try:
            self._loop()
        finally:  # nobody is left to speak for them
            for attempt in self._attempts.values():
                attempt.abandon()
            for attempt in self._attempts.values():
                attempt.join()
        log.info("worker_stopped", worker=settings.name)

    def _loop(self) -> None:
        patience, delay = Patience(), RETRY_SECONDS
        while self._attempts or not self._is_leaving:
            began = time.monotonic()
            if self._is_leaving:
                for attempt in self._attempts.values():
                    attempt.leave()
            reply = patience.call(self._poll)
            if reply is not None:
                self._follow(reply)
                delay = RETRY_SECONDS
                self._sleep_until(began + (LEAVING_SECONDS if self._is_leaving else MIN_POLL_SECONDS))
            else:
                self._sleep_until(time.monotonic() + (LEAVING_SECONDS if self._is_leaving else delay * random.uniform(0.5, 1.0)))
                # An API that was away gives every lease one period when it is back: a longer pause would let ours end.
                delay = min(2 * delay, MAX_RETRY_SECONDS, (self._lease_seconds or math.inf) / POLLS_PER_LEASE)
            self._attempts = {key: attempt for key, attempt in self._attempts.items() if attempt.is_alive()}
        patience.call(self._poll)  # the API offers no more

    def _sleep_until(self, deadline: float) -> None:
        """Less where a signal asks to leave meanwhile."""
        was_leaving = self._is_leaving
        while (left := deadline - time.monotonic()) > 0 and self._is_leaving == was_leaving:
            time.sleep(min(left, LEAVING_SECONDS))

    def _poll(self) -> PollReply | None:
        self._num_polls += 1
        settings = self._settings
        poll = Poll(
            incarnation=self._incarnation,
            host=platform.node(),
            address=settings.address,
            slots=settings.slots,
            device=self._device,
            shared=settings.shared,
            storage=self._storage_id,
            held=[attempt.held for attempt in self._attempts.values() if attempt.is_alive()],
            leaving=self._is_leaving,
            number=self._num_polls,
            wait_seconds=0.0 if self._is_leaving else min(MAX_WAIT_SECONDS, (self._lease_seconds or 0.0) / POLLS_PER_LEASE),
        )
        try:
            try:
                self._is_waiting = not self._is_leaving
                reply = self._client.poll(settings.name, poll)
            finally:
                self._is_waiting = False
        except Interrupted:
            return None
        except ApiProblem as problem:
            self._refused(problem)
            raise
        self._lease_seconds, self._refused_since = reply.lease_seconds, None
        return reply

    def _refused(self, problem: ApiProblem) -> None:
        """Returns where it is worth asking again."""
        name, code = self._settings.name, problem.document.get("code")
        if problem.status >= 500 or problem.status in (408, 429):
            return
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
            log.error("worker_refused", worker=name, why=str(problem))
        was_welcome = self._lease_seconds is not None and now - self._refused_since < REFUSED_SECONDS
        if code == "worker_replaced" or not (code == "worker_name_taken" or was_welcome):
            raise WorkerRefused(f"the API at {self._client.url} refuses the worker {name!r}: {problem}")

    def _follow(self, reply: PollReply) -> None:
        for offer in reply.offers:
            if (offer.run_id, offer.attempt) not in self._attempts and not self._is_leaving:
                self._start(offer)
        for told in reply.instructions:
            if attempt := self._attempts.get((told.run_id, told.attempt)):
                attempt.tell(told)

    def _start(self, offer: Offer) -> None:
        settings = self._settings
        taken = {attempt.held.master_port or 0 for attempt in self._attempts.values()}
        all_gpus = list(self._gpus)
        attempt = Attempt(
            self._client,
            settings,
            self._command,
            offer,
            master_port=pick_port(settings.ports, taken) if offer.node_rank == 0 else offer.master_port,
            gpus=() if offer.spec.resources.device == "cpu" else tuple(all_gpus[slot] for slot in offer.slots if slot < len(all_gpus)),
            storage_id=self._storage_id,
            lease_seconds=self._lease_seconds or 0.0,
        )
        self._attempts[offer.run_id, offer.attempt] = attempt
        attempt.start()
