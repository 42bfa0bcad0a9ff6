"""Batches of views."""

from __future__ import annotations

import os
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from service.spec import RunSpec
from tests.images import color_folder, indexed, kept, noise, noise_folder, plain_color
from trainer.data import decoder, loader
from trainer.data.augment import augment, view_rng
from trainer.data.decoder import Decoder
from trainer.data.images import Images
from trainer.data.loader import Batch, ViewLoader, iterate_images, model_inputs, normalise
from trainer.data.processes import in_order
from trainer.data.reader import Reader, read_pixels
from trainer.data.tasks import NUM_SPARES, Made, Task
from trainer.data.views import Views

PLAIN = {"crop_scale": (1.0, 1.0), "horizontal_flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}


def make_spec(root: Path, num_workers: int = 0, batch_size: int = 8, **augmentation: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "data": {"path": str(root), "image_size": 16, "num_workers": num_workers},
            "augmentation": augmentation,
            "optimizer": {"global_batch_size": batch_size},
            "schedule": {"epochs": 2},
        }
    )


def first_batches(
    spec: RunSpec, number: int, rank: int = 0, world_size: int = 1, start_step: int = 0, images: Images | None = None
) -> list[Batch]:
    images = images or indexed(Path(spec.data.path))
    return [kept(batch) for batch in islice(ViewLoader(images, spec, rank, world_size, start_step, spec.data.num_workers or 0), number)]


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.step, a.global_images, a.bad) == (b.step, b.global_images, b.bad)
        for ours_of_kind, theirs_of_kind in zip((*a.classes, *a.views), (*b.classes, *b.views), strict=True):
            assert torch.equal(ours_of_kind, theirs_of_kind)


def test_batches_are_the_same_whatever_the_number_of_loader_processes_and_the_first_step(tmp_path: Path) -> None:
    """Bit for bit: over an epoch's end, in this process, in two others, and started in the middle."""
    root = noise_folder(tmp_path, 29)
    batches = first_batches(make_spec(root), 7)
    assert_same(first_batches(make_spec(root), 4, start_step=3), batches[3:])
    assert_same(first_batches(make_spec(root, num_workers=2), 5, start_step=2), batches[2:])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_stands_until_the_next_but_one_is_asked_for(tmp_path: Path, num_workers: int) -> None:
    """Loader processes run ahead, into memory that is used again, and not into that."""
    spec = make_spec(noise_folder(tmp_path, 29), num_workers)
    expected = first_batches(spec, 12)
    batches = iter(ViewLoader(indexed(tmp_path), spec, 0, 1, 0, num_workers))
    before = next(batches)
    for n in range(1, 12):
        batch = next(batches)
        time.sleep(0.05)  # for the processes to write all that they may
        assert_same([before, batch], expected[n - 1 : n + 1])
        before = batch


def test_a_view_is_the_same_on_whichever_rank_it_is_made(tmp_path: Path) -> None:
    """The ranks' batches put together are the batch of one rank; each states the size of the whole."""
    spec = make_spec(noise_folder(tmp_path, 29), batch_size=9, views_per_image=2)
    for step, whole in enumerate(first_batches(spec, 5)):
        parts = [first_batches(spec, 1, rank, 3, start_step=step)[0] for rank in range(3)]
        assert torch.equal(torch.cat([part.views[0] for part in parts]), whole.views[0])
        assert torch.equal(torch.cat([part.classes[0] for part in parts]), whole.classes[0])
        assert (
            {part.global_images for part in parts}
            == {whole.global_images}
            == {whole.num_images}
            == {sum(part.num_images for part in parts)}
        )


def test_each_view_comes_with_the_instance_it_is_of(tmp_path: Path) -> None:
    """Each image has a colour of its own; the views of one image are adjacent; an epoch shows each image once."""
    root = color_folder(tmp_path, 30)
    batches = first_batches(make_spec(root, views_per_image=3, **PLAIN), 4)
    for batch in batches:
        assert batch.views[0].shape == (len(batch.classes[0]), 3, 16, 16)
        assert torch.equal(batch.classes[0], batch.classes[0][::3].repeat_interleave(3))
        for view, instance in zip(batch.views[0], batch.classes[0].tolist(), strict=True):
            assert tuple(view[:, 8, 8].tolist()) == plain_color(instance)
    assert sorted(torch.cat([batch.classes[0] for batch in batches]).tolist()) == sorted([*range(30)] * 3)


def test_small_views_come_beside_the_others_each_of_its_own_part_of_the_image(tmp_path: Path) -> None:
    """Views 0 and 1 are large, 2 to 4 small, each as drawn alone with its own scale; the others are what they were without small ones."""
    spec = make_spec(noise_folder(tmp_path, 8), views_per_image=2, small_views=3, small_size=8, small_crop_scale=(0.1, 0.2))
    (batch,) = first_batches(spec, 1)
    assert [views.shape[0] for views in batch.views] == [16, 24]
    large, small = batch.views
    assert (large.shape[2:], small.shape[2:]) == ((16, 16), (8, 8))
    reader = Reader(indexed(tmp_path).index)
    scaled = spec.augmentation.model_copy(update={"crop_scale": (0.1, 0.2)})
    for n, (view, instance) in enumerate(zip(small, batch.classes[1].tolist(), strict=True)):
        alone = augment(read_pixels(reader, instance), scaled, 8, view_rng(0, 0, instance, 2 + n % 3))
        assert np.array_equal(view.permute(1, 2, 0).numpy(), alone)
    assert torch.equal(large, first_batches(make_spec(tmp_path, views_per_image=2), 1)[0].views[0])
    assert_same(first_batches(make_spec(tmp_path, 1, **spec.augmentation.model_dump()), 1), [batch])


def test_the_views_of_an_image_differ_from_one_another_and_from_epoch_to_epoch(tmp_path: Path) -> None:
    """Else nothing would be learned from seeing an image again."""
    batches = first_batches(make_spec(noise_folder(tmp_path, 8), views_per_image=2), 2)
    views: dict[int, list[Tensor]] = {}
    for batch in batches:
        for view, instance in zip(batch.views[0], batch.classes[0].tolist(), strict=True):
            views.setdefault(instance, []).append(view)
    for seen in views.values():
        assert len(torch.stack(seen).unique(dim=0)) == 4


def test_another_image_takes_the_place_of_a_damaged_one_and_no_other_view_changes(tmp_path: Path) -> None:
    """With its own class, the same one on whichever rank and in whichever process; the batch says what could not be read, and why."""
    spec = make_spec(noise_folder(tmp_path, 16))
    images = indexed(tmp_path)
    whole = first_batches(spec, 4, images=images)
    (tmp_path / "005.png").write_bytes(b"damaged")
    (tmp_path / "011.png").unlink()
    batches = first_batches(spec, 4, images=images)
    found: list[tuple[int, str]] = []
    for before, after in zip(whole, batches, strict=True):
        damaged = (before.classes[0] == 5) | (before.classes[0] == 11)
        assert torch.equal(before.classes[0][~damaged], after.classes[0][~damaged])
        assert torch.equal(before.views[0][~damaged], after.views[0][~damaged])
        assert not set(after.classes[0][damaged].tolist()) & {5, 11}
        found += [(bad.row, bad.cause) for bad in after.bad]
    assert {(5, "undecodable"), (11, "missing")} == set(found)
    assert_same(first_batches(make_spec(tmp_path, num_workers=1), 4, images=images), batches)
    parts = [first_batches(spec, 4, rank, 2, images=images) for rank in range(2)]
    for step, batch in enumerate(batches):
        assert torch.equal(torch.cat([part[step].views[0] for part in parts]), batch.views[0])
        assert torch.equal(torch.cat([part[step].classes[0] for part in parts]), batch.classes[0])


def test_where_no_other_image_can_be_read_a_grey_one_stands(tmp_path: Path) -> None:
    """A batch is never short."""
    spec = make_spec(noise_folder(tmp_path, 16), **PLAIN)
    for i in range(16):
        (tmp_path / f"{i:03d}.png").write_bytes(b"")
    batch = first_batches(spec, 1)[0]
    assert batch.views[0].shape == (8, 3, 16, 16)
    assert batch.views[0].unique().tolist() == [128]
    assert len(batch.bad) == 8 * (1 + NUM_SPARES)


def test_duplicates_come_with_the_class_that_they_share(tmp_path: Path) -> None:
    """Images 0 and 1 are class 0, 2 and 3 class 1, and so on."""
    images = Images(indexed(color_folder(tmp_path, 16)).index, class_n=np.arange(16) // 2)
    batch = next(iter(ViewLoader(images, make_spec(tmp_path, batch_size=16, **PLAIN), 0, 1, 0)))
    color_of = {plain_color(i): i // 2 for i in range(16)}
    assert [color_of[tuple(view[:, 8, 8].tolist())] for view in batch.views[0]] == batch.classes[0].tolist()


def test_an_image_that_is_kept_while_a_batch_is_made_shifts_no_other(tmp_path: Path) -> None:
    """It stands in for a damaged one, and comes a second time later in the same batch; and images may come twice in one."""
    spec = make_spec(color_folder(tmp_path, 12), batch_size=12, **PLAIN)
    images = indexed(tmp_path)
    (tmp_path / images.name(0)).write_bytes(b"")
    views = Views(images.index, spec, 2**30, colours_on_device=False)
    rows = np.array([5, 0, 5, 9, 2, 8, 2])
    spares = np.full((len(rows), NUM_SPARES), 2)
    (made,) = in_order(views, iter([Task(rows, rows, np.zeros(len(rows), np.int64), spares, spares)]), 0, len(rows))
    assert made.instances.tolist() == [5, 2, 5, 9, 2, 8, 2]
    assert [tuple(view[:, 8, 8].tolist()) for view in made.pixels[0]] == [plain_color(i) for i in made.instances.tolist()]


class Fatal(Views):
    """Dies over image 3, and the second time hangs in its decoder."""

    def __getitem__(self, task: Task) -> Made:
        if self.decoder.notes is not None:
            self.decoder.__class__ = FatalDecoder
        return super().__getitem__(task)


class FatalDecoder(Decoder):
    def _take_note(self, row: int) -> None:
        super()._take_note(row)
        if row == 3:
            assert self.notes is not None
            was_here = self.notes.with_name("was-here")
            if not was_here.exists():
                was_here.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            decoder.DECODE_SECONDS = 1
            decoder.decode = lambda *_: time.sleep(90)  # type: ignore[assignment, func-returns-value, return-value]


def test_an_image_that_crashes_or_hangs_the_decoder_is_replaced_as_any_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends two processes, and is then left alone; no batch is lost."""
    spec = make_spec(noise_folder(tmp_path, 16), num_workers=1, batch_size=16)
    monkeypatch.setattr(loader, "Views", Fatal)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    (batch,) = first_batches(spec, 1)
    assert {(bad.row, bad.cause) for bad in batch.bad} == {(3, "crashes the decoder")}
    assert 3 not in batch.classes[0]
    assert len(batch.classes[0]) == 16


def photographs(root: Path, number: int) -> Path:
    """Smooth JPEG files of 400 x 500 pixels."""
    root.mkdir(exist_ok=True)
    for i in range(number):
        pixels = cv2.GaussianBlur(noise(i, 400, 500), (0, 0), 12)
        pixels = cv2.normalize(pixels, None, 0, 255, cv2.NORM_MINMAX)
        assert cv2.imwrite(str(root / f"{i}.jpg"), pixels)
    return root


def test_a_large_photograph_is_decoded_at_the_part_of_its_size_that_its_crops_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its views are those of the whole one, but for half a pixel that the crop is off, and the same in another process."""
    reduced: list[int] = []
    decode = decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda data, channels, reduce: reduced.append(reduce) or decode(data, channels, reduce))
    spec = make_spec(photographs(tmp_path, 8), blur=0.0, jitter=0.0, views_per_image=2)
    batch = first_batches(spec, 1)[0]
    assert max(reduced) == 8
    assert_same(first_batches(make_spec(tmp_path, num_workers=1, blur=0.0, jitter=0.0, views_per_image=2), 1), [batch])
    reader = Reader(indexed(tmp_path).index)
    for n, (view, instance) in enumerate(zip(batch.views[0], batch.classes[0].tolist(), strict=True)):
        whole = augment(read_pixels(reader, instance), spec.augmentation, 16, view_rng(0, 0, instance, n % 2))
        assert np.corrcoef(view.permute(1, 2, 0).flatten(), whole.ravel())[0, 1] > 0.9


def test_colours_left_to_the_device_give_the_same_views(tmp_path: Path) -> None:
    """To within 2 grey levels of 255 in 99 % of the pixels, part by part of the batch."""
    spec = make_spec(photographs(tmp_path, 8), solarize=0.5, small_views=2)
    images = indexed(tmp_path)
    here = next(iter(ViewLoader(images, spec, 0, 1, 0)))
    later = next(iter(ViewLoader(images, spec, 0, 1, 0, colours_on_device=True)))
    assert not torch.equal(here.views[0], later.views[0])
    for (pixels, none, _), (crops, colours, _) in zip(here.parts(3), later.parts(3), strict=True):
        expected = model_inputs(pixels, none, spec, torch.device("cpu"), torch.float32)
        found = model_inputs(crops, colours, spec, torch.device("cpu"), torch.float32)
        for of_kind, wanted in zip(found, expected, strict=True):
            grey_levels = (of_kind - wanted).abs() * 255 * torch.tensor(spec.data.std)[:, None, None]
            assert (grey_levels < 2.01).float().mean() > 0.99


def test_decoded_images_are_kept_only_where_all_may_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room the second epoch opens no file; without, it does; the batches are the same."""
    spec = make_spec(noise_folder(tmp_path, 16))
    opened: list[int] = []
    read = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, row: opened.append(row) or read(self, row))
    with_room = first_batches(spec, 4)
    assert sorted(opened) == list(range(16))
    monkeypatch.setattr(loader, "DECODED_BYTES", 15 * 24 * 24 * 3)
    opened.clear()
    assert_same(first_batches(spec, 4), with_room)
    assert len(opened) == 32


def test_a_loader_process_that_dies_is_replaced_and_no_batch_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of an epoch; Ctrl-C and collectives are not disturbed by it, only the next batch is late."""
    spec = make_spec(noise_folder(tmp_path, 29), num_workers=1)
    expected = first_batches(make_spec(tmp_path), 12)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    before = group_leaders()
    batches = iter(ViewLoader(indexed(tmp_path), spec, 0, 1, 0, 1))
    found = [kept(next(batches)) for _ in range(2)]
    os.kill(min(group_leaders() - before), signal.SIGKILL)
    found += [kept(next(batches)) for _ in range(10)]
    batches.close()
    assert_same(found, expected)


def group_leaders() -> set[int]:
    """Our children that lead a process group; other tests' servers among them."""
    children = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    return {pid for pid in children if os.getpgid(pid) == pid}


def test_loader_processes_have_their_own_process_group_and_end_with_the_iteration(tmp_path: Path) -> None:
    """A SIGTERM to the job's group asks for a last checkpoint; the loader must live to serve it, and not for longer."""
    spec = make_spec(noise_folder(tmp_path, 16), num_workers=1)
    before = group_leaders()
    batches = iter(ViewLoader(indexed(tmp_path), spec, 0, 1, 0, 1))
    next(batches)
    loaders = sorted(group_leaders() - before)
    assert len(loaders) == 1
    batches.close()
    with pytest.raises(ProcessLookupError):
        os.getpgid(loaders[0])


def test_evaluation_views_come_in_the_order_asked_for(tmp_path: Path) -> None:
    """With repeats, with a smaller last batch, and the same from another process."""
    images = indexed(color_folder(tmp_path, 12))
    order = [7, 0, 3, 3, 11, 2, 5]
    for num_workers in (0, 1):
        batches = [(views.clone(), of) for views, of in iterate_images(images, order, make_spec(tmp_path), 16, 3, num_workers)]
        assert [len(views) for views, _ in batches] == [3, 3, 1]
        colors = torch.cat([views for views, _ in batches])[:, :, 0, 0].tolist()
        assert [tuple(color) for color in colors] == [plain_color(i) for i in order]


def test_normalisation_takes_the_mean_and_divides_by_the_standard_deviation_per_channel() -> None:
    """Oracle: float64."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 5, 5), dtype=np.uint8))
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 1.5)
    expected = (images.double() / 255 - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[:, None, None]
    torch.testing.assert_close(normalise(images, mean, std).double(), expected, rtol=0, atol=2e-6)
