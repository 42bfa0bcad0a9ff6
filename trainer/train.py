"""The training loop: read it once, top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from service.events import ExitCode
from service.layout import RunDir
from service.spec import RunSpec, check_fits_dataset
from trainer.bad_images import BadImages
from trainer.beats import Beats
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.checkpoint_files import old_checkpoints, read_pins, record_knn, remove_checkpoints
from trainer.classifier import build_classifier
from trainer.classifier.similarity import keeps_hardest, refresh_hardest
from trainer.data.images import prepare_images
from trainer.data.loader import ViewLoader, model_inputs
from trainer.encoder import build_encoder
from trainer.engine import average_buffers, build_engine, full_state, set_learning_rates
from trainer.errors import BadSpec, TrainerError
from trainer.evaluate import evaluate_knn, load_labelled, pixel_knn
from trainer.export import export_backbone, verify_export
from trainer.fence import Fence
from trainer.meter import Meter
from trainer.prior import first_pass
from trainer.process import Process, release_free_memory, start_process
from trainer.resume import find_start, resize_warning
from trainer.schedule import due, learning_rate_factor, make_plan
from trainer.spool import EventSpool, NullSpool
from trainer.watch import StopAgreed, Watch

T = TypeVar("T")
STILL_ASKING_SECONDS = 60.0


class StillAsking(Exception):
    """What the ranks hear while rank 0 is at it."""


def train(spec: RunSpec, run_dir: RunDir, fence: Fence, beats: Beats, start_from: Path | None = None) -> int:
    """Train to the end of the schedule, from the newest checkpoint if there is one, else from `start_from`. Returns the exit code.

    A request to stop ends it with a checkpoint, or without where no step was done yet. Raises TrainerError where the
    specification or the data are at fault, and Fenced.
    """
    process = start_process(spec)
    attempt = run_dir.attempt(fence.attempt)
    spool = EventSpool(attempt.events) if process.is_first else NullSpool()
    watch = Watch(process, beats, attempt.stop)

    def enter(phase: str) -> None:
        spool.append("phase", phase=phase)
        watch.enter(phase)

    enter("indexing")
    images = _from_first(process, watch, lambda: prepare_images(spec, run_dir.index / "images", watch.beat))
    labelled = _from_first(process, watch, lambda: load_labelled(spec.evaluation, run_dir.index) if spec.evaluation.labelled else None)
    images_sha256 = images.sha256
    try:
        check_fits_dataset(spec, len(images), images.num_classes)
    except ValueError as error:
        raise BadSpec(str(error)) from None
    plan = make_plan(spec, len(images))

    encoder = build_encoder(spec)
    classifier = build_classifier(spec, images.num_classes, process.device)
    engine = build_engine(spec, encoder, classifier)
    dtype = next(encoder.parameters()).dtype

    saved = _from_first(process, watch, lambda: find_start(run_dir.checkpoints, start_from, spec, plan))
    start_step = step = saved.step if saved else 0
    knn = saved.knn if saved else None  # of the last evaluation, where it was at this step
    if saved:
        load_checkpoint(saved, engine, classifier, images_sha256=images_sha256, rank=process.rank, world_size=process.world_size)
        if warning := resize_warning(saved, encoder, spec, process.world_size):
            spool.append("warned", message=warning)
    spool.append(
        "started",
        num_images=len(images),
        num_steps=plan.num_steps,
        start_step=start_step,
        world_size=process.world_size,
        device=process.describe(spec),
    )
    if watch.stop_agreed(now=True):
        return ExitCode.STOPPED

    bad_images = BadImages(images.index, spec, process, run_dir.quarantine, spool, watch)

    def evaluate() -> float | None:
        if labelled is None:
            return None
        enter("evaluating")
        unreadable: dict[str, str] = {}
        knn = evaluate_knn(encoder.backbone, spec, labelled, process.device, watch, unreadable)
        bad_images.warn_of_evaluation(unreadable)
        pixels = pixel_knn(labelled, spec, watch) if step == 0 and process.is_first else None
        spool.append("evaluated", step=step, epoch=plan.epoch(step), knn=knn, knn_pixels=pixels)
        return knn

    def evaluation_is_due() -> bool:
        return labelled is not None and (step % plan.evaluate_every == 0 or step == plan.num_steps)

    try:
        if saved is None:
            enter("prior")
            first_pass(encoder, classifier, images, spec, process, watch, bad_images)
            average_buffers(encoder, process.world_size)
            evaluate()  # the random encoder
        elif saved.knn is None and evaluation_is_due():  # a stop broke it off
            knn = evaluate()
            if knn is not None and process.is_first and saved.path.parent == run_dir.checkpoints:
                record_knn(saved, knn)
    except StopAgreed:
        return ExitCode.STOPPED

    by_similarity = spec.classifier.smoothing > 0 and spec.classifier.hardest_by == "class_similarity"
    refresh_every = plan.steps_per_epoch * spec.classifier.refresh_epochs
    has_hardest = keeps_hardest(classifier, by_similarity)
    optimizer = spec.optimizer
    classifier_rate = optimizer.classifier_learning_rate or optimizer.learning_rate
    meter = Meter(plan, start_step, spec, process, bad_images)
    on_gpu, num_loaders = process.device.type == "cuda", process.num_loaders(spec)
    batches = iter(ViewLoader(images, spec, process.rank, process.world_size, start_step, num_loaders, colours_on_device=on_gpu))
    enter("training")
    encoder.train()
    for step in range(start_step + 1, plan.num_steps + 1):  # `step` counts the steps done once this one is
        last_step = step == plan.num_steps
        if by_similarity and ((step - 1) % refresh_every == 0 or not has_hardest):
            enter("similarity")
            refresh_hardest(classifier, watch)
            has_hardest = True
            enter("training")

        with meter.waiting_for_data():
            batch = next(batches)
        factor = learning_rate_factor(plan, step - 1)
        set_learning_rates(engine, factor * optimizer.learning_rate, factor * classifier_rate)
        loss = torch.zeros((), device=process.device)
        for views, colours, classes in batch.parts(optimizer.gradient_accumulation_steps):
            with meter.forward():
                features = engine(*model_inputs(views, colours, spec, process.device, dtype))
            part_loss = classifier(features, classes.to(process.device, non_blocking=True))
            engine.backward(part_loss)  # divides by the number of parts
            engine.step()  # after the last part
            loss += part_loss.detach() / optimizer.gradient_accumulation_steps
        if engine.was_step_applied():  # an fp16 overflow skips the step on every rank alike: the rows skip it too
            classifier.step(factor * classifier_rate, step)
        else:
            classifier.skip_step()
        average_buffers(encoder, process.world_size)
        meter.count(loss, batch)
        meter.admit(spool, batch)

        report = due(step, spec.log_every_steps)
        stop = watch.step(step, agree=report) and not last_step  # what is left then is short
        save = stop or last_step or due(step, plan.checkpoint_every)
        if report or save:  # what is saved has been found finite
            meter.report(spool, step, factor * optimizer.learning_rate)
        if step % plan.steps_per_epoch == 0:
            release_free_memory()
        knn = None
        if evaluation_is_due() and not stop:
            try:
                knn = evaluate()
            except StopAgreed:  # made up for after the resume
                stop = save = True
            encoder.train()
            enter("training")
        if save:
            watch.enter("saving")  # no step is made in however long that takes: the worker must not take it for a stall
            saved = save_checkpoint(
                run_dir.checkpoints,
                step,
                engine,
                classifier,
                spec,
                images_sha256=images_sha256,
                knn=knn,
                rank=process.rank,
                world_size=process.world_size,
                fence=fence,
            )
            watch.beat()
            if process.is_first:
                keep = spec.checkpoints
                old = old_checkpoints(run_dir.checkpoints, keep.keep_last, keep.keep_best, read_pins(run_dir.pins))
                spool.append(  # first: what is listed is there, also where the job is killed in between
                    "checkpointed",
                    step=step,
                    epoch=plan.epoch(step),
                    path=str(saved.path),
                    num_bytes=saved.num_bytes,
                    knn=knn,
                    removed=[str(path) for path in old],
                )
                remove_checkpoints(run_dir.checkpoints, old, fence)
            watch.enter("training")
        if stop:
            return ExitCode.STOPPED

    enter("exporting")
    state = full_state(engine)
    if process.is_first:
        weights = {**state["parameter"], **state["buffer"]}
        prefix = "encoder.backbone."
        backbone = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        export_backbone(backbone, spec, run_dir.export, {"num_images": len(images), "knn": knn, "epochs": plan.num_epochs}, fence)
        watch.beat()
        verify_export(run_dir.export)
        spool.append("exported", path=str(run_dir.export))
    if process.world_size > 1:
        dist.barrier()
    return ExitCode.FINISHED


def _from_first(process: Process, watch: Watch, ask: Callable[[], T]) -> T:
    """What `ask` returns, or raises, on rank 0, on every rank: one rank looks at the file system, all act alike."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask) if process.is_first else None
        while True:  # looking through a hundred million images takes longer than a collective may
            watch.beat()
            answer: list[T | Exception | None] = [StillAsking()]
            if asked is not None:
                try:
                    answer[0] = asked.result(timeout=STILL_ASKING_SECONDS)
                except TimeoutError:
                    if asked.done():  # the file system's own
                        raise
                except TrainerError as error:
                    answer[0] = error
            if process.world_size > 1:
                dist.broadcast_object_list(answer, src=0)
            if isinstance(answer[0], StillAsking):
                continue
            if isinstance(answer[0], Exception):
                raise answer[0]
            return answer[0]  # type: ignore[return-value]
