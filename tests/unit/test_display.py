"""How a run looks while it is followed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deploy.display import Display, one_line, panel
from deploy.doctor import Check, table
from service.events import Progress
from service.lifecycle import Status
from service.runs import Run
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
    return Run(id="r1", name="demo", status=status, reason="why", version=1, attempt=1, created_at=0, updated_at=0, spec=SPEC).model_copy(
        update=fields
    )


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
