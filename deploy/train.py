"""`millionway train`: the job alone, without any service. The same launch command, event spool and verdict as the worker's."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from deploy.display import Display
from service.admission import admit
from service.errors import FieldError, InvalidSpec, MillionwayError
from service.events import Checkpointed, Evaluated, Exported, JobEvent, Phase, Progress, Started, Straggler, Warned, job_event
from service.launch import Launch, free_port, job_command, job_environment
from service.layout import RunDir, write_whole
from service.lifecycle import Status
from service.runs import Run
from service.spec import RunSpec
from service.worker.job import Job
from service.worker.machine import num_cores, visible_gpus
from service.worker.shipping import complete_lines
from service.worker.verdict import exit_report

POLL_SECONDS = 0.5
GRACE_SECONDS = 30.0
WORKER = "here"
"""Who runs the job, for its processes' mark and its report."""


def train(spec: RunSpec, directory: Path, console: Console) -> Run:
    """Run the job in `directory` and show it. An earlier, unfinished training there goes on from its last checkpoint.

    KeyboardInterrupt stops the job with a checkpoint. Raises InvalidSpec, and MillionwayError where `directory` cannot be written.
    """
    nodes, ranks = spec.resources.nodes, spec.resources.ranks_per_node
    if nodes > 1:
        message = f"resources.nodes is {nodes}: this command trains on this machine alone: set it to 1, or submit the run to the service"
        raise InvalidSpec([FieldError("resources.nodes", nodes, message)])
    admit(spec, shared_files=True)
    run_dir = RunDir(directory.resolve())
    number = 1 + len(list(run_dir.path.glob("attempts/[0-9]*")))
    attempt = run_dir.attempt(number)
    try:
        attempt.path.mkdir(parents=True)
        write_whole(run_dir.spec, spec.model_dump_json(indent=2))
    except OSError as error:
        raise MillionwayError(f"the run's directory cannot be written ({error}): give another --output") from None
    gpus = tuple(visible_gpus())[:ranks] if spec.resources.device != "cpu" else ()
    if len(gpus) < ranks and spec.resources.device == "auto":
        gpus = ()  # one for each rank, or none
    launch = Launch(
        run_dir.path,
        number,
        ranks_per_node=ranks,
        master_port=free_port(),
        num_threads=max(1, num_cores() // ranks),
        gpus=gpus,
    )
    now = time.time()
    run = Run(
        id=str(run_dir.path),  # marks the job's processes, so it must be unique on this machine
        name=spec.name,
        owner="",
        status=Status.STARTING,
        reason=f"output in {directory}",
        version=0,
        attempt=number,
        created_at=now,
        updated_at=now,
        spec=spec,
    )
    job = Job(
        run.id,
        number,
        job_command(launch),
        job_environment(spec, launch),
        attempt.launcher_log(),
        stop_file=attempt.stop,
        grace_seconds=GRACE_SECONDS,
        worker=WORKER,
    )
    stopped, offset = False, 0
    try:
        with Display(console) as display:
            code: int | None = None
            while code is None:
                try:
                    time.sleep(POLL_SECONDS)
                    code = job.poll()
                    while lines := complete_lines(attempt.events, offset):
                        offset += sum(map(len, lines))
                        for line in lines:
                            run = with_event(run, job_event.validate_json(line))
                    display.show(run, "stopping: the job writes a checkpoint" if stopped else "")
                except KeyboardInterrupt:
                    stopped = True
                    job.stop()
            report = exit_report(WORKER, code, attempt, launch, told_to="stopped" if stopped else None, killed=job.killed)
            ends = {"finished": Status.SUCCEEDED, "stopped": Status.CANCELLED}
            run = run.model_copy(update={"status": ends.get(report.outcome, Status.FAILED), "reason": report.reason})
            display.show(run)
    finally:
        job.kill()
    return run


def with_event(run: Run, event: JobEvent) -> Run:
    """The run's record after an event of its job."""
    changes: dict[str, object] = {}
    match event:
        case Started():
            changes = {"status": Status.RUNNING, "num_images": event.num_images}
            changes["reason"] = f"training from step {event.start_step} on {event.world_size} ranks: {event.device}"
        case Phase():
            changes = {"phase": event.phase}
        case Progress():
            changes = {"progress": event}
        case Evaluated():
            changes = {"knn": event.knn}
            if event.epoch == 0:
                changes |= {"knn_random": event.knn, "knn_pixels": event.knn_pixels}
        case Checkpointed():
            changes = {"checkpoint": event.path}
        case Exported():
            changes = {"export": event.path}
        case Straggler():
            slow = f"rank {event.rank} takes {event.seconds:.2f} s of its own a step, the others {event.median_seconds:.2f} s"
            changes = {"warnings": [*run.warnings, slow][-20:]}
        case Warned():
            changes = {"warnings": [*run.warnings, event.message][-20:]}
    return run.model_copy(update=changes)
