"""The rows of a checkpoint for people who want them, with numpy alone: row i is that of image i in the sorted order of the paths.

    python -m trainer.read_rows RUN/checkpoints/step-000000120 rows.npy

A checkpoint is a folder: manifest.json names the shards with the classes start .. stop of each; a shard is a safetensors file: 8 bytes
with the length of a JSON header, the header, the numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 20
"""Rows in memory at a time."""
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}


def num_rows(checkpoint: Path) -> int:
    return max(about["stop"] for about in _shards(checkpoint).values())


def read_rows(checkpoint: Path, start: int = 0, stop: int | None = None, name: str = "rows") -> NDArray[Any]:
    """[stop - start, D] float32 (int32 for "hardest") of the classes start .. stop. `name`: "rows", "rows_momentum", or "hardest", which
    only runs by class similarity have.

    Reads only what is asked for. Raises ValueError where the checkpoint has no such rows.
    """
    total = num_rows(checkpoint)
    stop = total if stop is None else stop
    if not 0 <= start <= stop <= total:
        raise ValueError(f"rows {start} to {stop} of {checkpoint}: it has rows 0 to {total}")
    parts = []
    for file, about in _shards(checkpoint).items():
        low, high = max(start, about["start"]), min(stop, about["stop"])
        if low < high:
            tensor = open_tensor(checkpoint / file, name)
            part = tensor[low - about["start"] : high - about["start"]]
            is_bf16 = tensor.dtype == DTYPES["BF16"]  # the upper half of a float32
            parts.append(
                (part.astype(np.uint32) << 16).view(np.float32) if is_bf16 else part.astype(np.float32 if name != "hardest" else part.dtype)
            )
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def write_npy(checkpoint: Path, out: Path, start: int = 0, stop: int | None = None, name: str = "rows") -> tuple[int, int]:
    """The same rows in a .npy file, whole or not at all, a block in memory at a time. Returns their shape."""
    stop = num_rows(checkpoint) if stop is None else stop
    first = read_rows(checkpoint, start, min(start + BLOCK, stop), name)
    shape = (stop - start, first.shape[1])
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        rows = np.lib.format.open_memmap(temporary, "w+", first.dtype, shape)
        for at in range(start, stop, BLOCK):
            rows[at - start : at - start + BLOCK] = read_rows(checkpoint, at, min(at + BLOCK, stop), name)
        rows.flush()
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return shape


def open_tensor(file: Path, name: str) -> NDArray[Any]:
    """A tensor of a safetensors file, mapped into memory and not read; bf16 as uint16. Raises ValueError where it has none of that name."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    if name not in header:
        raise ValueError(f"{file} has no {name!r}: it has {', '.join(sorted(header.keys() - {'__metadata__'}))}")
    about = header[name]
    begin = 8 + length + about["data_offsets"][0]
    return np.memmap(file, DTYPES[about["dtype"]], "r", begin, tuple(about["shape"]))


def _shards(checkpoint: Path) -> dict[str, dict[str, int]]:
    """File names and their classes, in order. Raises ValueError."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{checkpoint} is no checkpoint: {error}: name a folder RUN/checkpoints/step-...") from None
    shards = {name: about for name, about in files.items() if "start" in about}
    if not shards:
        raise ValueError(f"{checkpoint} has no shards of rows: with classifier.parallelism zero3 they are in encoder.safetensors")
    return dict(sorted(shards.items(), key=lambda item: item[1]["start"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="a .npy file")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--stop", type=int)
    parser.add_argument("--name", default="rows", choices=["rows", "rows_momentum", "hardest"])
    arguments = parser.parse_args()
    try:
        shape = write_npy(arguments.checkpoint, arguments.out, arguments.start, arguments.stop, arguments.name)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    sys.stdout.write(f"{shape[0]} rows of {shape[1]} numbers in {arguments.out}\n")


if __name__ == "__main__":
    main()
