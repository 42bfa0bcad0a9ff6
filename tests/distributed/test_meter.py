"""What ranks report of themselves, on real gloo processes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from service.spec import RunSpec
from tests.distributed.job import spec_of
from tests.distributed.launch import on_ranks
from tests.images import indexed, noise_folder
from trainer.bad_images import BadImages
from trainer.beats import Beats
from trainer.data.index import Index
from trainer.data.loader import Batch
from trainer.errors import NonFiniteLoss
from trainer.meter import Meter
from trainer.process import Process
from trainer.schedule import make_plan
from trainer.spool import EventSpool, NullSpool
from trainer.watch import Watch

pytestmark = pytest.mark.distributed


def one_rank_loads_slowly(spec: RunSpec, index: Index, spool_file: str) -> str:
    """Four reports of two steps; rank 1 waits for its data. Then a loss that is infinite on rank 1 alone."""
    process = Process(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    spool = EventSpool(Path(spool_file)) if process.is_first else NullSpool()
    watch = Watch(process, Beats(Path(spool_file).with_name(f"beat-{process.rank}")), Path(spool_file).with_name("stop"))
    bad_images = BadImages(index, spec, process, Path(spool_file).with_name("quarantine.jsonl"), spool, watch)
    meter = Meter(make_plan(spec, 60), 0, spec, process, bad_images)
    batch = Batch((), (), num_images=10, global_images=20, step=0, colours=None, bad=[], read_seconds=0.0, seconds=0.0)
    for step in range(1, 9):
        with meter.waiting_for_data():
            time.sleep(0.05 if process.rank == 1 else 0.0)
        meter.count(torch.tensor(1.0 + process.rank), batch)
        if step % 2 == 0:
            meter.report(spool, step, 0.1)
    meter.count(torch.tensor(torch.inf if process.rank == 1 else 1.0), batch)
    try:
        meter.report(spool, 9, 0.1)
    except NonFiniteLoss as error:
        return str(error)
    return "finite"


def test_the_rank_that_makes_the_others_wait_is_named_and_a_loss_lost_on_one_rank_ends_all(tmp_path: Path) -> None:
    """Its own seconds are those before the first collective; the loss reported is the mean over ranks and steps."""
    index = indexed(noise_folder(tmp_path / "images", 2)).index
    messages = on_ranks(3, tmp_path, one_rank_loads_slowly, spec_of(tmp_path), index, str(tmp_path / "events.jsonl"))
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["loss"] for event in events if event["kind"] == "progress"] == [2.0] * 4
    (straggler,) = [event for event in events if event["kind"] == "straggler"]
    assert (straggler["step"], straggler["rank"]) == (6, 1)
    assert straggler["seconds"] >= 0.05 > 0.04 > straggler["median_seconds"]
    assert all("between steps 9 and 9" in message for message in messages)
