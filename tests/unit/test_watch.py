"""When a rank looks for a request to stop, and what it shows of itself meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from service.layout import read_beat
from trainer import watch as watch_module
from trainer.beats import Beats
from trainer.process import Process
from trainer.watch import StopAgreed, Watch


@pytest.fixture
def process() -> Process:
    return Process(rank=0, world_size=1, device=torch.device("cpu"))


def test_a_stop_is_seen_at_the_first_batch_by_file_or_by_signal(process: Process, tmp_path: Path) -> None:
    """Each phase looks at its first batch."""
    stop = tmp_path / "stop"
    watch = Watch(process, Beats(tmp_path / "beats" / "rank-0"), stop)
    watch.batch()
    stop.touch()
    watch.enter("evaluating")
    with pytest.raises(StopAgreed):
        watch.batch()
    stop.unlink()
    watch.enter("training")
    assert not watch.step(1, agree=True)
    process.stop_requested = True
    assert watch.step(2, agree=True)


def test_slow_batches_are_all_looked_at_and_quick_ones_seldom(process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """About AGREE_SECONDS pass between two looks, never more than twice as many batches as before."""
    monkeypatch.setattr(watch_module, "AGREE_SECONDS", 0.2)
    stop = tmp_path / "stop"
    watch = Watch(process, Beats(tmp_path / "rank-0"), stop)
    for _ in range(40):
        watch.batch()
        time.sleep(0.01)
    stop.touch()
    quick = 0
    while not watch.stop_agreed() and quick < 60:
        quick += 1
        time.sleep(0.01)
    assert 1 <= quick <= 25
    stop.unlink()
    watch.enter("evaluating")
    for _ in range(2):
        watch.batch()
        time.sleep(0.25)
    stop.touch()
    with pytest.raises(StopAgreed):
        watch.batch()


def test_a_beat_says_step_phase_and_how_much_was_done(tmp_path: Path) -> None:
    """The file exists from the start; a new phase is written at once, the pieces of one at most ten times a second."""
    path = tmp_path / "beats" / "rank-3"
    beats = Beats(path)
    first = read_beat(path)
    assert first is not None
    assert (first.phase, first.step) == ("starting", 0)
    beats.enter("training")
    for step in range(1, 1000):
        beats.beat(step)
    held_back = read_beat(path)
    assert held_back is not None
    assert held_back.phase == "training"
    assert held_back.step < 999
    time.sleep(0.1)
    beats.beat(1000)
    last = read_beat(path)
    assert last is not None
    assert (last.step, last.count) == (1000, 1002)
