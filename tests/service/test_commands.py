"""The commands about runs and workers, against the real API with a worker that is no process."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from deploy import follow
from deploy.cli import app
from service.layout import RunDir
from service.lifecycle import Status
from tests.conftest import new_key, wait_until
from tests.service.reading import Reading


@pytest.fixture(autouse=True)
def _logs_apart() -> Iterator[None]:
    """The API runs in this process: what it logs is not what the command prints."""
    with capture_logs():
        yield


def called(api: Reading, *arguments: str, key: str | None = None) -> Result:
    return CliRunner(env={"MILLIONWAY_KEY": key or api.key}).invoke(app, [*arguments, "--api", api.url])


def said(api: Reading, *arguments: str) -> str:
    result = called(api, *arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def spec_file(folder: Path, **sections: object) -> str:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({"preset": "demo", "data": {"path": "/data/images", "limit": 1000}, **sections}))
    return str(path)


def test_a_reason_in_brackets_is_printed_as_it_is(api: Reading) -> None:
    """C++ puts its file names in brackets, which is rich's markup for a closing tag."""
    reason = "[/src/gloo/pair.cc:547] Connection closed by peer [127.0.0.1]"
    run = api.started()
    api.end(run, "faulty", reason)
    for command in (["runs"], ["show", run.id], ["attempts", run.id]):
        assert reason in said(api, *command)


def test_runs_pages_through_more_than_the_api_gives_at_once(api: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newest first, none twice, and a word when there are more."""
    monkeypatch.setattr(follow, "MAX_PAGE", 3)
    ids = [api.submit().id for _ in range(8)]
    for limit in (2, 3, 7, 8, 1000):
        lines = said(api, "runs", "--limit", str(limit)).splitlines()
        assert [line.split()[0] for line in lines[1 : 1 + limit] if "older" not in line] == ids[::-1][:limit]
        assert ("older ones" in lines[-1]) == (limit < 8)


def test_runs_are_filtered_by_status_label_and_owner(api: Reading, redis_session: str) -> None:
    """All that are named must hold."""
    seeds, other = api.submit(labels={"project": "seeds"}), api.submit(labels={"project": "leaves"})
    theirs = called(api, "runs", key=new_key(f"{redis_session}/2", "alice"))
    assert seeds.id not in theirs.stdout, "a user sees only her own"
    assert [run in said(api, "runs", "--label", "project=seeds") for run in (seeds.id, other.id)] == [True, False]
    assert seeds.id not in said(api, "runs", "--label", "project=seeds", "--status", "running")
    assert seeds.id in said(api, "runs", "--owner", seeds.owner)
    assert seeds.id not in said(api, "runs", "--owner", "alice")


def test_a_queued_run_shows_its_place_every_reason_and_what_would_help(api: Reading) -> None:
    """In the list, and in full."""
    api.started()
    waiting = [api.submit(), api.submit()]
    wait_until(lambda: (wait := api.client.run(waiting[1].id).wait) and wait.position == 2, "the scheduler has seen them")
    assert "queued #2" in said(api, "runs")
    shown = said(api, "show", waiting[1].id)
    for text in ("position 2 in the queue", "(busy)", "(behind_others)", "starts now with: "):
        assert text in shown


def test_show_has_placement_parent_labels_and_history(api: Reading) -> None:
    """Who ran it, on which slots and ranks, and how each attempt ended."""
    run = api.started(labels={"project": "seeds"}, priority=3)
    api.report(run, api.checkpointed(10))
    api.end(run, "crashed", "ran out of luck")
    shown = said(api, "show", run.id)
    for text in (
        "project=seeds",
        "priority    3",
        "attempt 1",
        "from step 0",
        "crashed",
        "w1 on node-1, slots 0,1, ranks 0-1",
        "step 10",
        "place -> starting",
    ):
        assert text in shown, shown


def test_the_requests_of_a_run_s_life(api: Reading) -> None:
    """Pause, resume, cancel; what is not possible is said with exit code 1."""
    run = api.submit()
    for command, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert f"{run.id} {status}" in said(api, command, run.id)
    refused = called(api, "pause", run.id)
    assert (refused.exit_code, "is cancelled: pause is not possible" in refused.stderr) == (1, True)
    running = api.started()
    assert f"{running.id} cancelling" in said(api, "kill", running.id)


def test_priority_and_labels_change(api: Reading) -> None:
    """Also to less than nothing; a label goes by --remove."""
    run = api.submit(labels={"a": "1", "b": "2"})
    assert "priority 7" in said(api, "priority", run.id, "7")
    said(api, "label", run.id, "c=x=y", "--remove", "a")
    assert api.client.run(run.id).labels == {"b": "2", "c": "x=y"}
    negative = CliRunner(env={"MILLIONWAY_KEY": api.key}).invoke(app, ["priority", run.id, "--api", api.url, "--", "-5"])
    assert (negative.exit_code, api.client.run(run.id).priority) == (0, -5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "RUN", "nonsense"], "'nonsense' is no label: write NAME=VALUE"),
        (["label", "RUN"], "no label is given"),
        (["label", "RUN", "-bad-=1"], "label '-bad-'"),
        (["fork", "RUN", "--set", "schedule.epochs"], "write SECTION.KEY=VALUE"),
        (["fork", "RUN", "--set", "schedule..epochs=1"], "write SECTION.KEY=VALUE"),
        (["fork", "RUN", "--set", "a.b={"], "the value is not YAML"),
        (["fork", "RUN", "missing.yaml"], "missing.yaml cannot be read"),
        (["fork", "RUN"], "has no checkpoint"),
        (["metrics", "RUN"], "has no loss yet"),
        (["logs", "RUN", "--node", "1"], "has no attempt yet"),
        (["download", "RUN", "-o", "there", "--export", "--step", "3"], "give one of them"),
        (["pin", "RUN", "3"], "has no checkpoint of step 3"),
        (["drain", "nobody"], "no worker 'nobody'"),
        (["runs", "--key-file", "missing.key"], "the key file missing.key cannot be read"),
    ],
)
def test_a_mistake_gets_one_message(api: Reading, arguments: list[str], message: str) -> None:
    """On stderr, with exit code 1."""
    run = api.submit()
    arguments = [run.id if argument == "RUN" else argument for argument in arguments]
    if "-bad-=1" in arguments:  # behind --, as any shell user writes it
        arguments = [*arguments[:-1], "--api", api.url, "--", arguments[-1]]
    result = CliRunner(env={"MILLIONWAY_KEY": api.key, "MILLIONWAY_API": api.url}).invoke(app, arguments)
    assert (result.exit_code, message in result.stderr) == (1, True), result.output


def test_a_fork_takes_changes_from_a_file_and_from_options(api: Reading, tmp_path: Path) -> None:
    """Options go over the file, the file over the parent."""
    run = api.started()
    api.report(run, api.checkpointed(10), api.checkpointed(20))
    changes = tmp_path / "changes.yaml"
    changes.write_text(yaml.safe_dump({"schedule": {"epochs": 50}, "name": "longer"}))
    out = said(api, "fork", run.id, str(changes), "--step", "10", "--set", "schedule.epochs=60", "--set", "labels={kind: long}")
    child = api.client.run(out.split()[0])
    assert child.parent is not None
    assert (child.parent.run_id, child.parent.step) == (run.id, 10)
    assert (child.name, child.spec.schedule.epochs, child.labels) == ("longer", 60, {"kind": "long"})
    assert f"forked from {run.id} at step 10" in " ".join(said(api, "show", child.id).split())


def test_a_plan_is_printed_and_its_exit_code_says_whether_it_can_run(api: Reading, tmp_path: Path) -> None:
    """Placement, memory by its parts, duration."""
    never = called(api, "plan", spec_file(tmp_path))
    assert never.exit_code == 1
    assert "cannot run on the workers that there are" in never.stdout
    assert "(no_worker)" in never.stdout
    api.poll()
    file = spec_file(tmp_path, resources={"ranks_per_node": 2})
    wait_until(lambda: called(api, "plan", file).exit_code == 0, "the scheduler has seen the worker")
    out = said(api, "plan", file)
    for text in (
        "starts now on 2 ranks: w1",
        "images      1,000",
        "per rank of 2",
        "rows momentum",
        "activations",
        "no run like it has trained yet",
    ):
        assert text in out, out


def test_events_come_as_lines_or_as_json(api: Reading) -> None:
    """Transitions and what the job reported, in one order; followed, until the run has ended."""
    run = api.started()
    api.report(run, api.progress(10, loss=3.25))
    assert "loss=3.25" in said(api, "events", run.id)
    api.end(run)
    documents = [json.loads(line) for line in said(api, "events", run.id, "--json", "-f").splitlines()]
    kinds = [document["kind"] for document in documents]
    assert kinds == [json.loads(line)["kind"] for line in said(api, "events", run.id, "--json").splitlines()]
    assert [kind for kind in kinds if kind != "transition"] == ["started", "progress"]
    assert documents[-1]["data"]["event"] == "finished"


def test_metrics_are_drawn_or_written_as_csv(api: Reading) -> None:
    """Every series; each number as it was reported."""
    run = api.started()
    api.report(run, *(api.progress(step, loss=10 / step) for step in range(1, 31)))
    drawn = said(api, "metrics", run.id).splitlines()
    assert drawn[0] == "loss, steps 1 to 30, last 0.33333"
    assert len(drawn) == 11
    rows = list(csv.DictReader(io.StringIO(said(api, "metrics", run.id, "--csv"))))
    assert {row["series"] for row in rows} == {"loss", "learning_rate", "images_per_second", "data_wait"}
    assert [float(row["last"]) for row in rows if row["series"] == "loss"] == pytest.approx([10 / step for step in range(1, 31)], rel=1e-6)
    assert {row["series"] for row in csv.DictReader(io.StringIO(said(api, "metrics", run.id, "--csv", "--series", "data_wait")))} == {
        "data_wait"
    }


def test_checkpoints_are_listed_pinned_and_let_go(api: Reading) -> None:
    """A pin is seen in the list."""
    run = api.started()
    api.report(run, api.checkpointed(10), api.checkpointed(20))
    said(api, "pin", run.id, "10")
    lines = said(api, "checkpoints", run.id).splitlines()[1:]
    assert [(line.split()[0], "yes" in line) for line in lines] == [("10", True), ("20", False)]
    said(api, "unpin", run.id, "10")
    assert not any(checkpoint.pinned for checkpoint in api.client.checkpoints(run.id))


def test_an_export_is_downloaded_whole_and_not_fetched_twice(api: Reading, tmp_path: Path) -> None:
    """With its checksums; a file that is damaged here is fetched anew."""
    run = api.submit()
    export = RunDir(api.runs_dir / run.id).export
    export.mkdir(parents=True)
    contents = {"model.safetensors": bytes(range(256)) * 5000, "config.json": b"{}"}
    for name, content in contents.items():
        (export / name).write_bytes(content)
    (export / "SHA256SUMS").write_text("".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items()))
    target = tmp_path / "here" / "export"
    assert "model.safetensors: 1,280,000 bytes, SHA-256 verified" in said(api, "download", run.id, "-o", str(target))
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.name in contents} == contents
    (target / "config.json").write_bytes(b"[]")
    again = said(api, "download", run.id, "--export", "-o", str(target))
    assert "model.safetensors: there already" in again
    assert "config.json: 2 bytes, SHA-256 verified" in again
    assert (target / "config.json").read_bytes() == b"{}"


def test_logs_are_found_by_rank_by_node_and_by_launcher(api: Reading) -> None:
    """With --node, --rank counts on that node."""
    run = api.started()
    for name in ("rank-0.log", "rank-1.log", "rank-2.log", "launcher-0.log"):
        api.client.put_log(run.id, 1, name, 0, f"of {name}\n".encode())
    assert said(api, "logs", run.id) == "of rank-0.log\n"
    assert said(api, "logs", run.id, "--rank", "1") == "of rank-1.log\n"
    assert said(api, "logs", run.id, "--node", "1") == "of rank-2.log\n", "two ranks on each node"
    assert said(api, "logs", run.id, "--launcher") == "of launcher-0.log\n"
    missing = called(api, "logs", run.id, "--rank", "7")
    assert "there is: launcher-0.log of attempt 1" in missing.stderr


def test_a_worker_is_listed_drained_and_put_back(api: Reading) -> None:
    """With what it holds."""
    run = api.started()
    row = said(api, "workers").splitlines()[1].split()
    assert row[:5] == ["w1", "node-1", "ready", "0", "2"]
    assert run.id in row
    assert "w1 draining, 1 runs there" in said(api, "drain", "w1", "--finish")
    assert api.client.run(run.id).status == Status.RUNNING
    assert "w1 ready" in said(api, "undrain", "w1")
    said(api, "drain", "w1")
    api.wait(run, Status.PREEMPTING)
