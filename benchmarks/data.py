"""The data path beside its peers', in one table: images per second from JPEG files to batches: of uint8 crops (recipe crop), or normalised
(moco-v2).

    python -m benchmarks.data [--images DIR] [--size 224] [--seconds S] [--rounds R] [--only name,name] [--recipes crop,moco-v2]
                              [--device cpu] [--json FILE]

Every row has the same photographs (data_photos.py: 512 of 500 x 375, or JPEGs of --images), in a fresh process, one after another:

    ceiling       OpenCV decodes, crops and resizes, in a process per core: no framework, no loader, no batches
    decode        OpenCV decodes alone
    ours-folder   the trainer's own loader over the folder, and its normalisation; nothing decoded is kept
    ours-tar      the same over tar files; ours-packed: over what `millionway pack` made of the folder at 256 pixels
    others        data_peers.py

Recipes: `crop` (decode, random resized crop, flip) and `moco-v2` (and colour jitter, greyscale, blur). One core: everything in one
process that is bound to one core, without loader processes; "CPU" is images per second of that process's own CPU time, which other
programs disturb least. All cores: a loader process per core, and the batches come to this one.
Files come from the page cache, starting processes does not count. Run it on an idle machine, and compare the rows: each is the median of
`--rounds`, in which the rows come one after another, and so are the ratios, because machines are faster in one minute than in the next.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import math
import os
import platform
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor

from benchmarks.data_peers import BATCH, MEAN, PEERS, RATIO, SCALE, STD, Batches, Unavailable, Work, one_thread, read_rgb
from benchmarks.data_photos import photos
from benchmarks.data_table import Table
from service.spec import RunSpec
from trainer.data import loader
from trainer.data.images import index_images
from trainer.data.loader import ViewLoader, normalise
from trainer.data.pack import pack
from trainer.data.pack_shards import PackSettings

NUM_PHOTOS = 512
BARE = ("ceiling", "decode")
OURS = ("ours-folder", "ours-tar", "ours-packed")
RECIPES = ("crop", "moco-v2")
CROP_ONLY = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
WARM_UP_BATCHES = 4


def ours(name: str, work: Work) -> Batches:
    path = {"ours-folder": work.photos, "ours-tar": work.tars, "ours-packed": work.packed}[name]
    spec = RunSpec.model_validate(
        {
            "data": {"path": path, "image_size": work.size},
            "augmentation": CROP_ONLY if work.recipe == "crop" else {},
            "optimizer": {"global_batch_size": BATCH},
            "schedule": {"epochs": 1},
        }
    )
    loader.DECODED_BYTES = 0  # so few photographs would all be kept

    def batches(num_workers: int) -> Iterator[Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            for batch in ViewLoader(index_images(path, Path(folder) / "index"), spec, 0, 1, 0, num_workers):
                pixels = batch.views[0].to(work.device, non_blocking=True)
                yield pixels if work.recipe == "crop" else normalise(pixels, MEAN, STD)

    return batches


def bare(name: str, files: list[str], size: int, core: int, seconds: float, start: Any, answer: Any) -> None:
    """In a process of its own: puts images per second."""
    os.sched_setaffinity(0, [core])
    cv2.setNumThreads(0)
    draw = random.Random(core)
    for file in files:
        Path(file).read_bytes()
    start.wait()
    num, begun, cpu_begun = 0, time.perf_counter(), time.process_time()
    while (taken := time.perf_counter() - begun) < seconds:
        image = read_rgb(Path(draw.choice(files)).read_bytes())
        if name == "ceiling":
            height, width = image.shape[:2]
            area, ratio = height * width * draw.uniform(*SCALE), math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
            w, h = min(width, round(math.sqrt(area * ratio))), min(height, round(math.sqrt(area / ratio)))
            top, left = draw.randint(0, height - h), draw.randint(0, width - w)
            shrinks = w > 2 * size or h > 2 * size  # as ours: up to half its size linear interpolation is enough
            crop = image[top : top + h, left : left + w]
            cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        num += 1
    answer.put((num / taken, num / (time.process_time() - cpu_begun)))


def bare_rate(name: str, work: Work, cores: list[int], seconds: float) -> tuple[float, float]:
    """Images per second and per CPU second, of as many processes, each bound to its core."""
    context = get_context("spawn")
    start, answer = context.Barrier(len(cores)), context.SimpleQueue()
    children = [context.Process(target=bare, args=(name, work.files, work.size, core, seconds, start, answer)) for core in cores]
    for child in children:
        child.start()
    rates = [answer.get() for _ in children]
    for child in children:
        child.join()
    return sum(rate for rate, _ in rates), sum(rate for _, rate in rates) / len(rates)


def loader_rate(make: Batches, num_workers: int, seconds: float, device: str) -> tuple[float, float]:
    """Images per second, and per CPU second of this process."""
    batches = make(num_workers)
    for batch in islice(batches, max(WARM_UP_BATCHES, 2 * num_workers)):
        assert batch.dtype in (torch.uint8, torch.float32)
    num, begun, cpu_begun = 0, time.perf_counter(), time.process_time()
    while (taken := time.perf_counter() - begun) < seconds or not num:
        num += len(next(batches))
        if device != "cpu":
            torch.cuda.synchronize()
    return num / taken, num / (time.process_time() - cpu_begun)


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """In a fresh process."""
    name, work, seconds = task["name"], Work(**task["work"]), task["seconds"]
    cores = sorted(os.sched_getaffinity(0))
    if name in BARE:
        one, one_cpu = bare_rate(name, work, cores[:1], seconds)
        return {"one": one, "one_cpu": one_cpu, "all": bare_rate(name, work, cores, seconds)[0]}
    try:
        make: Batches = ours(name, work) if name in OURS else PEERS[name](work)
    except Unavailable as reason:
        return {"unavailable": str(reason)}
    one_thread()
    os.sched_setaffinity(0, cores[:1])
    one, one_cpu = loader_rate(make, 0, seconds, work.device)
    os.sched_setaffinity(0, cores)
    return {"one": one, "one_cpu": one_cpu, "all": loader_rate(make, len(cores), seconds, work.device)[0]}


def in_child(name: str, work: Work, seconds: float) -> dict[str, Any]:
    task = json.dumps({"name": name, "work": asdict(work), "seconds": seconds})
    command = [sys.executable, "-m", "benchmarks.data", "--child", task]
    child = subprocess.run(command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"} | os.environ)
    if child.returncode == 0:
        return json.loads(child.stdout.splitlines()[-1])
    errors = child.stderr.strip().splitlines()
    return {"unavailable": f"exit status {child.returncode}: {errors[-1] if errors else 'no message'}"}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def write_tars(files: list[str], folder: Path, number: int) -> None:
    for i in range(number):
        with tarfile.open(folder / f"{i:04d}.tar", "w") as tar:
            for j, file in enumerate(files[i::number]):
                data, info = Path(file).read_bytes(), tarfile.TarInfo(f"{i:04d}-{j:06d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs instead of the generated photographs")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of all rows, one after another; the medians are shown")
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        print(json.dumps(answer(json.loads(args.child))))
        return
    names = args.only.split(",") if args.only else [*BARE, *OURS, *PEERS]
    load, num_cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = (args.images or photos(NUM_PHOTOS)).absolute()
        work = Work(str(root), f"{folder}/tars", f"{folder}/packed", "crop", args.size, args.device)
        Path(work.tars).mkdir()
        write_tars(work.files, Path(work.tars), max(8, num_cores))
        packed = pack(work.photos, Path(work.packed), PackSettings(256), num_cores)
        sizes = sum(Path(file).stat().st_size for file in work.files) / len(work.files), packed.num_bytes / packed.num_images
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
        table = Table(work, BARE, {"processor": processor(), "torch": torch.__version__, "date": date}, args.json)
        for recipe in args.recipes.split(","):
            wanted = [name for name in names if name not in BARE or recipe == "crop"]
            rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
            for _ in range(args.rounds):
                for name in wanted:
                    rounds[name].append(in_child(name, replace(work, recipe=recipe), args.seconds))
            table.add(recipe, rounds)
    print(f"\n{len(work.files):,} JPEGs of {sizes[0] / 1e3:.0f} kB, packed {sizes[1] / 1e3:.0f} kB; views of {args.size} x {args.size}")
    print(f"{processor()}, {num_cores} cores; {args.device}; load before: {load:.1f}; {date}")


if __name__ == "__main__":
    main()
