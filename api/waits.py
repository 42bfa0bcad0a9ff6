"""Why a queued run waits, put into its record."""

from __future__ import annotations

from api.control_loop import Scheduler
from service.lifecycle import Status
from service.runs import Run, Wait, WaitReason


async def with_wait(run: Run, scheduler: Scheduler) -> Run:
    """The run, with every reason that holds it back and what would let it start now."""
    if run.status != Status.QUEUED:
        return run
    board = await scheduler.board()
    queued = scheduler.waiting.get(run.id)
    if queued is None:  # submitted a moment ago, or further back in its owner's queue than the scheduler looks
        return run
    found = scheduler.explained(queued, board)
    reasons = [WaitReason(token=reason.token, message=reason.message) for reason in found.reasons]
    wait = Wait(reasons=reasons, starts_if=list(found.starts_if), starts_at=found.starts_at, position=found.position)
    reason = "; ".join(part for part in (run.reason, reasons[0].message if reasons else "") if part)
    return run.model_copy(update={"wait": wait, "reason": reason})
