"""The index of up to a million images, from the files' names to the first batch.

    python -m benchmarks.data_index [--files N] [--folders M] [--layouts flat,nested,tar] [--directory DIR] [--json FILE]

For a tenth, three tenths and all of N files, each measurement in a fresh process, one after another:

    list          os.scandir over the tree and nothing else: the file system's own time
    index         the command `millionway index`, from its start to its end; of that the processor's time, which other programs disturb
                  least; its peak of resident memory; bytes of index per image
    again         the same command with nothing new; with ADDED files more
    open          index_images() of a run that finds the folder's own index up to date
    batch         from there to the first batch (256 images of 32 x 32), with no and with two loader processes, which start meanwhile and
                  import torch; the median of REPEATS processes, as all that follows
    loader        the larger of two loader processes after BATCHES batches: USS is its own alone, PSS has its share of what others map too

The files are hard links to a few small JPEG and PNG files: an index looks at no file's contents, so it costs the same for real ones.
`flat` has them in one folder, `nested` in M, which become labels; `tar` is one tar file of at most MOST_MEMBERS members. Listings come from
the page cache. What ten million take is extrapolated from the slope over the three sizes, and is marked with ~. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from benchmarks.data_index_files import SETTLE_SECONDS, SIZE, Tar, Tree

LAYOUTS = ("flat", "nested", "tar")
ADDED = 1000
BATCH, BATCHES, REPEATS = 256, 40, 3
MOST_MEMBERS = 100_000
FAR = 10_000_000
COMMAND = """
from pathlib import Path
from deploy.cli import app
app(standalone_mode=False)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
"""`millionway`, and the peak of its memory in KiB: what the system tells the parent of that would include the parent's own."""
COLUMNS = {
    "list_seconds": ("list s", ".2f"),
    "index_seconds": ("index s", ".1f"),
    "index_cpu_seconds": ("CPU s", ".1f"),
    "index_peak_bytes": ("peak MB", "MB"),
    "index_bytes_per_image": ("B/image", ".1f"),
    "again_seconds": ("again s", ".1f"),
    "again_cpu_seconds": ("CPU s", ".1f"),
    "again_peak_bytes": ("peak MB", "MB"),
    "added_seconds": (f"+{ADDED} s", ".1f"),
    "added_cpu_seconds": ("CPU s", ".1f"),
    "open_seconds": ("open s", ".2f"),
    "batch_0_seconds": ("batch s, 0", ".2f"),
    "batch_2_seconds": ("2 loaders", ".2f"),
    "loader_uss_bytes": ("USS MB", "MB"),
    "loader_pss_bytes": ("PSS MB", "MB"),
    "loader_rss_bytes": ("RSS MB", "MB"),
    "load": ("load", ".1f"),
}
"""Measurements that a row has: their heading, and their format."""
GROWING = [f"{name}_{what}" for name in ("list", "open", "index", "again", "added") for what in ("seconds", "cpu_seconds", "peak_bytes")]
"""With the images, where they were measured; the rest stays."""


def list_tree(root: str) -> dict[str, Any]:
    begun, num, pending = time.perf_counter(), 0, [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(entry.path)
                else:
                    num += 1
    return {"seconds": time.perf_counter() - begun, "files": num}


def first_batches(root: str, num_workers: int) -> dict[str, Any]:
    """In a fresh process: what a rank does between its imports and its first step, and then the memory of its loader processes."""
    import torch

    from service.spec import RunSpec
    from trainer.data import loader
    from trainer.data.images import index_images

    torch.set_num_threads(1)
    loader.DECODED_BYTES = 0  # what is kept of decoded images is bounded by that; here it would hide what an index costs
    spec = RunSpec.model_validate(
        {"data": {"path": root, "image_size": SIZE}, "optimizer": {"global_batch_size": BATCH}, "schedule": {"epochs": 1}}
    )
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        images = index_images(root, Path(folder) / "index")
        opened = time.perf_counter()
        batches = iter(loader.ViewLoader(images, spec, 0, 1, 0, num_workers))
        assert not next(batches).bad
        batch_seconds = time.perf_counter() - opened
        found: dict[str, Any] = {"images": len(images), "open_seconds": opened - begun, f"batch_{num_workers}_seconds": batch_seconds}
        if num_workers:
            for _ in range(BATCHES):
                assert not next(batches).bad
            found |= loader_memory()
    return found


def loader_memory() -> dict[str, int]:
    """Bytes of the larger of this process's loader processes."""
    children = (int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split())
    loaders = [memory_of(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return {f"loader_{name}_bytes": max(loader[name] for loader in loaders) for name in loaders[0]}


def memory_of(pid: int) -> dict[str, int]:
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    field = {name.rstrip(":"): 1024 * int(kib) for name, kib, _ in lines}
    return {
        "uss": field["Private_Clean"] + field["Private_Dirty"],
        "pss": field["Pss"],
        "rss": field["Rss"],
        "anonymous": field["Anonymous"],
    }


def in_child(task: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.data_index", "--child", json.dumps(task)]
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={"OMP_NUM_THREADS": "1"} | os.environ)
    return json.loads(child.stdout.splitlines()[-1])


def command_index(root: Path, name: str) -> dict[str, Any]:
    """Of `millionway index`: seconds, of which the processor worked for it, and the peak of its resident memory."""
    begun, cpu_begun = time.perf_counter(), os.times()
    child = subprocess.run([sys.executable, "-c", COMMAND, "index", str(root)], stdout=subprocess.PIPE, text=True)
    assert child.returncode == 0, f"`millionway index {root}` ended with {child.returncode}"
    seconds, cpu = time.perf_counter() - begun, os.times()
    cpu_seconds = cpu.children_user + cpu.children_system - cpu_begun.children_user - cpu_begun.children_system
    return {
        f"{name}_seconds": seconds,
        f"{name}_cpu_seconds": cpu_seconds,
        f"{name}_peak_bytes": 1024 * int(child.stdout.splitlines()[-1]),
    }


def measure(layout: str, source: Tree | Tar, size: int) -> dict[str, Any]:
    """One row. Leaves ADDED more images in a tree, and no index."""
    root = source.root
    index = root / ".millionway-index" if root.is_dir() else root.with_name(f".{root.name}.millionway-index")
    row: dict[str, Any] = {"name": layout, "images": size, "load": os.getloadavg()[0]}
    if root.is_dir():
        listed = in_child({"what": "list", "root": str(root)})
        assert listed["files"] == size
        row["list_seconds"] = listed["seconds"]
    row |= command_index(root, "index")
    row["index_bytes_per_image"] = sum(file.stat().st_size for file in index.iterdir()) / size
    time.sleep(SETTLE_SECONDS)  # writing the index has changed the folder
    row |= command_index(root, "again")
    assert (index / "watched.json").exists(), "the index would not be taken for up to date"
    for num_workers in (0, 2):
        found = [in_child({"what": "batch", "root": str(root), "num_workers": num_workers}) for _ in range(REPEATS)]
        assert all(one["images"] == size for one in found)
        row |= {name: median(one[name] for one in found) for name in found[0] if name not in row}
    if isinstance(source, Tree):
        source.grow(size + ADDED)
        row |= command_index(root, "added")
        assert json.loads((index / "index.json").read_text())["num_images"] == size + ADDED
    shutil.rmtree(index)
    return row


def extrapolated(rows: list[dict[str, Any]], images: int) -> dict[str, Any]:
    """The line of least squares through the rows, at so many images."""
    found: dict[str, Any] = {"name": rows[-1]["name"], "images": images, "extrapolated": True}
    for name in GROWING:
        if name not in rows[-1]:
            continue
        slope, start = linear_regression([row["images"] for row in rows], [row[name] for row in rows])
        found[name] = start + slope * images
    return found


class Table:
    """Printed row by row as they come; the JSON is written with each."""

    def __init__(self, about: dict[str, Any], file: Path | None) -> None:
        self.rows, self._about, self._file = list[dict[str, Any]](), about, file
        print(f"{'':8}{'images':>12}" + "".join(f"{heading:>{len(heading) + 3}}" for heading, _ in COLUMNS.values()), flush=True)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()} | self._about)
        line = f"{row['name']:8}{('~' if 'extrapolated' in row else '') + format(row['images'], ','):>12}"
        for name, (heading, form) in COLUMNS.items():
            value = row.get(name)
            text = "-" if value is None else f"{value / 1e6:,.0f}" if form == "MB" else format(value, form)
            line += f"{text:>{len(heading) + 3}}"
        print(line, flush=True)
        if self._file:
            self._file.write_text(json.dumps(self.rows, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=1000, help="of the nested tree")
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="separated by commas")
    parser.add_argument("--directory", type=Path, help="where the files are made, and removed afterwards; default: for temporary files")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        task = json.loads(args.child)
        print(json.dumps(list_tree(task["root"]) if task["what"] == "list" else first_batches(task["root"], task["num_workers"])))
        return
    sizes = sorted({args.files // 10, args.files * 3 // 10, args.files})
    assert all(after - before > ADDED for before, after in pairwise(sizes)), "too few files: each size is to have more than is added"
    load, date = os.getloadavg()[0], datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    table = Table({"cores": len(os.sched_getaffinity(0)), "date": date}, args.json)
    for layout in args.layouts.split(","):
        with tempfile.TemporaryDirectory(dir=args.directory) as folder:
            if layout == "tar":
                members = min(args.files, MOST_MEMBERS)
                table.add(measure(layout, Tar(Path(folder) / "images.tar", members), members))
                continue
            tree = Tree(Path(folder) / layout, args.folders if layout == "nested" else 0)
            rows = []
            for size in sizes:
                tree.grow(size)
                rows.append(measure(layout, tree, size))
                table.add(rows[-1])
            table.add(extrapolated(rows, FAR))
    print("\n~: extrapolated from the slope over the sizes before it, not measured.")
    print(f"{len(os.sched_getaffinity(0))} cores; load before: {load:.1f}; {date}")


if __name__ == "__main__":
    main()
