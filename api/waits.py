"""Why a queued run waits, put into its record."""

from __future__ import annotations

from api.control_loop import Scheduler
from service.lifecycle import Status
from service.runs import Run, Wait, WaitReason
from service.scheduling.board import Board


async def with_wait(run: Run, scheduler: Scheduler) -> Run:
    """The run, with every reason that holds it back and what would let it start now."""
    if run.status != Status.QUEUED:
        return run
    board = await scheduler.board()
    if queued := scheduler.waiting.get(run.id):
        found = scheduler.explained(queued, board)
        reasons = [WaitReason(token=reason.token, message=reason.message) for reason in found.reasons]
        wait = Wait(reasons=reasons, starts_if=list(found.starts_if), starts_at=found.starts_at, position=found.position)
    else:
        wait = Wait(reasons=[_unseen(run, board)], starts_if=[], starts_at=None, position=None)
    reason = "; ".join(part for part in (run.reason, wait.reasons[0].message if wait.reasons else "") if part)
    return run.model_copy(update={"wait": wait, "reason": reason})


def _unseen(run: Run, board: Board) -> WaitReason:
    """Of a run that the scheduler did not look at in its last pass."""
    if run.id in board.live:
        return WaitReason(token="processes_ending", message="its last attempt's processes are not known to be gone everywhere yet")  # noqa: S106
    return WaitReason(token="not_looked_at", message="it came a moment ago, or many runs are before it: one of the next passes looks at it")  # noqa: S106
