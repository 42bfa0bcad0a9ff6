"""How a run looks while it is followed."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from deploy.display import Display, attempt_lines, one_line, panel, plan_lines, wait_lines
from deploy.doctor import Check, table
from deploy.plot import plot
from service.events import Progress
from service.lifecycle import Status
from service.protocol import MemoryEstimate, Plan
from service.runs import Attempt, Member, Run, Wait, WaitReason
from service.spec import parse_spec

SPEC = parse_spec({"preset": "demo", "data": {"path": "/images"}})
PROGRESS = Progress(
    seq=1,
    time=0,
    step=36,
    num_steps=180,
    epoch=3.0,
    num_epochs=15,
    loss=6.5,
    learning_rate=0.1,
    images_per_second=1234.5,
    data_wait=0.031,
    eta_seconds=83.2,
)


def run(status: Status, **fields: object) -> Run:
    known = {"id": "r1", "name": "demo", "owner": "alice", "reason": "why", "version": 1, "attempt": 1, "created_at": 0, "updated_at": 0}
    return Run.model_validate({**known, "status": status, "spec": SPEC}).model_copy(update=fields)


RUNNING = run(Status.RUNNING, phase="training", progress=PROGRESS, knn=97.2, knn_random=74.7, knn_pixels=96.4)


@pytest.mark.parametrize(
    "text",
    [
        *("running", "training", "3.0/15", "36/180", "loss 6.500", "1,234 images/s", "ETA 0:01:23"),
        *("learning rate 0.1", "data wait 3%", "kNN 97.2%", "random encoder 74.7%", "raw pixels 96.4%"),
    ],
)
def test_a_line_and_a_panel_say_all_that_a_person_asks(text: str) -> None:
    """Where it is, how fast, how long, and how good against the random encoder."""
    console = Console(file=io.StringIO(), width=150)
    with console.capture() as capture:
        console.print(panel(RUNNING))
    assert text in one_line(RUNNING)
    assert text in capture.get()


def test_the_panel_of_a_queued_run_says_why_it_waits_and_what_would_help() -> None:
    """While it is followed, as `show` says it."""
    wait = Wait(reasons=[WaitReason(token="busy", message="no node is free")], starts_if=["at priority 6"], starts_at=0.0, position=3)
    console = Console(file=io.StringIO(), width=150)
    with console.capture() as capture:
        console.print(panel(run(Status.QUEUED, wait=wait)))
    assert list(wait_lines(wait))[1:] == ["waits: no node is free (busy)", "starts now with: at priority 6"]
    assert "position 3 in the queue, expected to start at 19" in capture.get()
    assert all(line in capture.get() for line in wait_lines(wait))


def test_an_attempt_names_each_nodes_worker_slots_and_ranks() -> None:
    """Ranks count over the nodes; an attempt that goes on has no outcome yet."""
    members = [Member(worker=f"w{n}", host=f"h{n}", address="", slots=[0, 1], state="held") for n in range(2)]
    attempt = Attempt(number=2, members=members, ranks_per_node=2, placed_at=0.0, start_step=40)
    first, *nodes = attempt_lines(attempt)
    assert "attempt 2" in first
    assert first.endswith("from step 40  goes on")
    assert nodes == ["  node 0  w0 on h0, slots 0,1, ranks 0-1  held", "  node 1  w1 on h1, slots 0,1, ranks 2-3  held"]


def test_an_attempt_that_ended_says_how_and_shows_the_log_on_request() -> None:
    """The outcome of the whole, and of each node, with its exit code."""
    member = Member(worker="w", host="h", address="", slots=[3], state="crashed", exit_code=-9, reason="killed", log_tail="one\ntwo")
    attempt = Attempt(number=1, members=[member], ranks_per_node=1, placed_at=10.0, ended_at=75.0, outcome="lost", reason="a rank died")
    lines = list(attempt_lines(attempt, with_log_tail=True))
    assert lines[0].endswith("lost after 0:01:05: a rank died")
    assert lines[1:] == ["  node 0  w on h, slots 3, rank 0  crashed, exit code -9: killed", "    | one", "    | two"]
    assert list(attempt_lines(attempt)) == lines[:2]


PLAN = Plan(
    feasible=True,
    starts_now=True,
    reasons=[],
    starts_if=[],
    placement=["w1", "w2"],
    ranks=8,
    position=1,
    starts_at=None,
    memory=MemoryEstimate(rows=2**20, rows_momentum=2**20, classifier_work=2**21, encoder=None, activations=None, total=None),
    num_images=1_281_167,
    eta_seconds=7325.0,
)


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        (
            {},
            ["starts now on 8 ranks: w1, w2", "images      1,281,167", "rows             1.0 MiB", "encoder          not known", "2:02:05"],
        ),
        ({"feasible": False, "starts_now": False}, ["cannot run on the workers that there are"]),
        ({"starts_now": False, "position": 4}, ["waits at position 4 in the queue"]),
        ({"eta_seconds": None, "num_images": None, "memory": None}, ["images      not known", "no run like it has trained yet"]),
    ],
)
def test_a_plan_says_what_is_known_and_what_is_not(changes: dict[str, object], texts: list[str]) -> None:
    """A line each."""
    lines = list(plan_lines(PLAN.model_copy(update=changes)))
    assert all(any(text in line for line in lines) for text in texts), lines


def test_a_curve_is_drawn_with_its_largest_and_smallest_value() -> None:
    """The highest column is full, the lowest is still seen, what is no number leaves a gap."""
    lines = plot([4.0, 2.0, math.nan, 0.0], height=4, blocks=False)
    assert [line[11:] for line in lines] == ["#   ", "#   ", "##  ", "## #"]
    assert (lines[0].split()[0], lines[-1].split()[0]) == ("4", "0")
    full = chr(0x2588)
    assert [line[11] for line in plot([1.0, 0.0], height=3)] == [full] * 3
    assert plot([5.0, 5.0], height=2)[-1].strip().startswith("5 ")


def test_a_reason_in_brackets_is_shown_as_it_is() -> None:
    """Square brackets are no markup of ours."""
    console = Console(file=io.StringIO(), width=150)
    with console.capture() as capture:
        console.print(panel(run(Status.FAILED, reason="[red] is no colour")))
    assert "[red] is no colour" in capture.get()


def test_the_doctor_shows_brackets_as_they_are() -> None:
    """A remedy names an extra of the package, and a path may be found in brackets."""
    console = Console(file=io.StringIO(), width=150)
    with console.capture() as capture:
        console.print(table([Check("trainer", "[/no/such/path]", "pip install -e '.[trainer]'", fatal=True)]))
    assert "[/no/such/path]" in capture.get()
    assert "pip install -e '.[trainer]'" in capture.get()


def test_outside_a_terminal_a_line_appears_only_when_something_changed() -> None:
    """A log of a followed run stays readable."""
    file = io.StringIO()
    with Display(Console(file=file, width=150)) as display:
        for status in (Status.QUEUED, Status.QUEUED, Status.STARTING):
            display.show(run(status))
        for step in range(36, 46):  # ten reports within LINE_SECONDS
            display.show(RUNNING.model_copy(update={"progress": PROGRESS.model_copy(update={"step": step})}))
        display.show(run(Status.SUCCEEDED))
    assert [line.split()[1] for line in file.getvalue().splitlines()] == ["queued", "starting", "running", "succeeded"]
