"""The same images from a folder, from tar shards and from parquet files: the same losses, to the bit.

    python -m benchmarks.data_formats DATA/train [--images 5000] [--steps 40] [--ranks 2] [--json FILE]

DATA/train holds a folder for each class, e.g. CIFAR-10's. Each form is trained by the job that `millionway train` starts.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from rich.console import Console

from deploy.train import train
from service.lifecycle import Status
from service.spec import RunSpec, parse_spec

SHARDS = 5


def write_forms(files: list[Path], root: Path, target: Path) -> dict[str, Path]:
    """A folder of links, SHARDS tar files (WebDataset's layout) and SHARDS parquet files (Hugging Face's), all in the order of `files`."""
    forms = {name: target / name for name in ("folder", "tar", "parquet")}
    for folder in forms.values():
        folder.mkdir()
    size = -(-len(files) // SHARDS)
    for number in range(SHARDS):
        part = files[number * size : (number + 1) * size]
        with tarfile.open(forms["tar"] / f"{number}.tar", "w") as tar:
            for file in part:
                key = "-".join(file.relative_to(root).with_suffix("").parts)
                tar.add(file, f"{key}{file.suffix}")
                label = file.parent.name.encode()
                member = tarfile.TarInfo(f"{key}.cls")
                member.size = len(label)
                tar.addfile(member, io.BytesIO(label))
        rows = [{"bytes": file.read_bytes(), "path": str(file.relative_to(root))} for file in part]
        table = pyarrow.table({"image": rows, "label": [file.parent.name for file in part]})
        pyarrow.parquet.write_table(table, forms["parquet"] / f"{number}.parquet", row_group_size=200)
    for file in files:
        link = forms["folder"] / file.relative_to(root)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(file)
    return forms


def spec_of(path: Path, steps: int, ranks: int) -> RunSpec:
    return parse_spec(
        {
            "preset": "cifar10",
            "data": {"path": str(path), "num_workers": 1},
            "backbone": {"name": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [32, 32, 64, 128]}},
            "optimizer": {"global_batch_size": 128},
            "schedule": {"steps": steps},
            "resources": {"ranks_per_node": ranks, "device": "cpu"},
            "evaluation": {"labelled": str(path), "limit": 1000, "every_epochs": 1000},
            "log_every_steps": 1,
        }
    )


def run(path: Path, directory: Path, steps: int, ranks: int) -> dict[str, Any]:
    begun = time.monotonic()
    trained = train(spec_of(path, steps, ranks), directory, Console(file=io.StringIO()))
    assert trained.status == Status.SUCCEEDED, trained.reason
    events = [json.loads(line) for line in (directory / "attempts" / "0001" / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["kind"] == "progress"]
    return {"losses": losses, "knn": trained.knn, "seconds": time.monotonic() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    root = arguments.data.resolve()
    files = sorted(root.rglob("*.jpg"))
    files = files[:: max(1, len(files) // arguments.images)][: arguments.images]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in write_forms(files, root, Path(scratch)).items():
            rows.append({"name": name, **run(path, Path(scratch) / f"run-{name}", arguments.steps, arguments.ranks)})
            first, last = rows[-1]["losses"][0], rows[-1]["losses"][-1]
            same = "as the folder's" if rows[-1]["losses"] == rows[0]["losses"] else "OTHER THAN THE FOLDER'S"
            print(
                f"{name:<8} {len(files):,} images, {arguments.steps} steps on {arguments.ranks} ranks: loss {first!r} .. {last!r}, {same}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if any(row["losses"] != rows[0]["losses"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
