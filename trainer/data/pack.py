"""A pile of images as tar shards of resized JPEGs (WebDataset's layout), for slow file systems and clusters of GPUs.

    shard-000000.tar ...       ID.jpg and, with a label, ID.cls, ordered by ID: the image's row in the source's index, nine digits
    shard-000000_01.tar ...    where a shard's rows did not fit in one
    pack.json                  what was packed and how, the rows of each shard, and in the end what came of it
    names.txt                  ID, tab, the original name; as in sha256sum's lists, a newline in it is \\n and a backslash \\\\
    unreadable.jsonl           the images that were left out, and why
    SHA256SUMS                 `sha256sum -c SHA256SUMS`
    .packed.jsonl              a line for each range of rows whose shards are whole: what a resume goes by
    .millionway-index/         the folder's own index, so that it trains at once

A range's rows are fixed before the first is packed, so that the bytes are the same whatever the number of workers and of interruptions.
Its shards have their names before its line is written: what has no line is packed again, over what is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.layout import write_whole
from trainer.data import pack_shards
from trainer.data.files import is_url
from trainer.data.images import default_index, index_images
from trainer.data.index import Index, write_index
from trainer.data.pack_shards import PackSettings, check_labels, key, packed_bytes
from trainer.data.sources import list_source
from trainer.durable import sync
from trainer.errors import BadData, DiskError

_JOURNAL, _SOURCE, _LOCK = ".packed.jsonl", ".source-index", ".lock"
_FILL = 0.95
"""Of a shard, by the estimate: ranges that need a second shard are to be few."""
_FEWEST_ROWS, _MOST_SHARDS_OF_FEW = 1024, 64
"""A pile that fills few shards is cut into more, one for each core, but none of a handful of images."""
_POLL_SECONDS = 0.25

Progress = Callable[[int, int], None]
"""Called with the number of images that are done, and of all."""


@dataclass(frozen=True)
class Packed:
    """What a folder holds after `pack`."""

    num_images: int
    num_bytes: int
    num_shards: int
    unreadable: dict[str, int]
    """Images left out, by cause."""
    num_resumed: int
    """Images that an earlier call had packed already, or left out."""


def pack(path: str, out: Path, settings: PackSettings, num_workers: int, progress: Progress = lambda done, total: None) -> Packed:
    """Pack the images at `path` (absolute, or a URL) into the folder `out`, or go on where an earlier call was cut off.

    Raises BadData where the source cannot serve, or `out` holds something else or another pack; DiskError where it cannot be written.
    """
    if not is_url(path) and out.resolve().is_relative_to(Path(path).resolve()):
        raise BadData(f"{str(out)!r} is within the images at {path!r}, and would be found among them: give another folder")
    out = out.absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _lock(out):
            return _pack(path, out, settings, num_workers, progress)
    except OSError as error:
        raise DiskError(f"{str(out)!r} cannot be written ({error}): make room, and give the same command again to go on") from None


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadData(f"another process packs into {str(out)!r}: let it end, or give another folder") from None
        except OSError:  # a file system without locks
            pass
        yield


def _pack(path: str, out: Path, settings: PackSettings, num_workers: int, progress: Progress) -> Packed:
    if not (out / "pack.json").exists() and any(not file.name.startswith(".") for file in out.iterdir()):
        raise BadData(f"{str(out)!r} is not empty, and no pack of images: give another folder")
    for left in out.glob(".*.tmp"):  # by a process that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    shutil.rmtree(out / _SOURCE, ignore_errors=True)
    index = index_images(path, out / _SOURCE).index
    if settings.labels:
        check_labels(index)
    about = _plan(path, out, index, settings)
    ranges = range((len(index) + about["rows_per_shard"] - 1) // about["rows_per_shard"])
    records = _whole_records(out)
    packer = pack_shards.RangePacker(index, out, settings)
    write_whole(out / _JOURNAL, "".join(json.dumps(records[i]) + "\n" for i in sorted(records)))  # without a line that was cut off
    resumed = sum(_rows_in(index, about, i) for i in records)
    with (out / _JOURNAL).open("a") as journal:
        missing = [i for i in ranges if i not in records]
        for record in _in_workers(packer, about["rows_per_shard"], missing, num_workers, resumed, progress):
            records[record["range"]] = record
            journal.write(json.dumps(record) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
    progress(_num_rows(index), _num_rows(index))
    return _finish(out, index, about, [records[i] for i in ranges], resumed)


def _plan(path: str, out: Path, index: Index, settings: PackSettings) -> dict[str, Any]:
    """What pack.json says from the beginning; of an earlier call, where it asked for the same."""
    labels = hashlib.sha256(
        json.dumps(index.label_names).encode() + (b"" if index.label_n is None else index.label_n.tobytes())
    ).hexdigest()
    asked = {**asdict(settings), "source_index_sha256": index.sha256, "source_labels_sha256": labels if settings.labels else None}
    try:
        about: dict[str, Any] = json.loads((out / "pack.json").read_text())
    except FileNotFoundError:
        about = {"source": path, **asked, "rows": len(index), "rows_per_shard": _rows_per_shard(index, settings)}
        write_whole(out / "pack.json", json.dumps(about, indent=1) + "\n")
        return about
    except ValueError as error:
        raise BadData(f"{str(out / 'pack.json')!r} is damaged ({error}): remove the folder, or give another") from None
    changed = [f"{name} was {about.get(name)!r} and is {value!r}" for name, value in asked.items() if about.get(name) != value]
    if changed:
        raise BadData(
            f"{str(out)!r} holds a pack of {about.get('source')!r} with other settings or images ({'; '.join(changed)}): "
            "give another folder, or remove this one to pack anew"
        )
    return about


def _rows_per_shard(index: Index, settings: PackSettings) -> int:
    each = packed_bytes(index, settings)
    by_size = int(_FILL * settings.shard_bytes / each)
    return max(1, min(by_size, max(_FEWEST_ROWS, -(-len(index) // _MOST_SHARDS_OF_FEW))))


def _num_rows(index: Index) -> int:
    return len(index) - (0 if index.gone_n is None else int(index.gone_n.sum()))


def _rows_in(index: Index, about: dict[str, Any], number: int) -> int:
    """Images in a range."""
    begin = number * about["rows_per_shard"]
    end = min(begin + about["rows_per_shard"], len(index))
    return end - begin - (0 if index.gone_n is None else int(index.gone_n[begin:end].sum()))


def _whole_records(out: Path) -> dict[int, dict[str, Any]]:
    """Of the ranges whose shards are there."""
    records = {}
    for line in (out / _JOURNAL).read_text().splitlines() if (out / _JOURNAL).exists() else []:
        try:
            record = json.loads(line)
            whole = all((out / shard["name"]).stat().st_size == shard["bytes"] for shard in record["shards"])
        except (ValueError, OSError):  # cut off; removed
            continue
        if whole:
            records[record["range"]] = record
    return records


def _in_workers(
    packer: pack_shards.RangePacker, rows_per_shard: int, ranges: list[int], num_workers: int, done: int, progress: Progress
) -> Iterator[dict[str, Any]]:
    """The record of each range, once its shards are on the disk."""
    if not ranges:
        return
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    workers, num_rows = min(num_workers, len(ranges)), len(packer.index)
    with ProcessPoolExecutor(workers, context, pack_shards.start_worker, (packer, counter, stop)) as pool:
        try:
            waiting = {pool.submit(pack_shards.pack_range, i, i * rows_per_shard, min((i + 1) * rows_per_shard, num_rows)) for i in ranges}
            while waiting:
                finished, waiting = wait(waiting, _POLL_SECONDS, FIRST_EXCEPTION)
                progress(done + counter.value, _num_rows(packer.index))
                for future in finished:
                    yield future.result()
        except BrokenProcessPool:
            raise BadData(
                f"one of {workers} worker processes was killed, perhaps for memory: give the same command again, with fewer workers"
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _finish(out: Path, index: Index, about: dict[str, Any], records: list[dict[str, Any]], resumed: int) -> Packed:
    """Write all that follows from the records, in their order."""
    shards = [shard for record in records for shard in record["shards"]]
    unreadable = [image for record in records for image in record["unreadable"]]
    for outdated in set(out.glob("shard-*.tar")) - {out / shard["name"] for shard in shards}:  # of a range that was packed over
        outdated.unlink()
    left_out = {image["id"] for image in unreadable}
    with _whole(out / "names.txt") as file:
        for row in range(len(index)):
            if row not in left_out and (index.gone_n is None or not index.gone_n[row]):
                name = os.fsencode(index.full_name(row)).replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
                file.write(b"%s\t%s\n" % (key(row).encode(), name))
    write_whole(out / "unreadable.jsonl", "".join(json.dumps(image) + "\n" for image in unreadable))
    write_whole(out / "SHA256SUMS", "".join(f"{shard['sha256']}  {shard['name']}\n" for shard in shards))
    write_whole(out / _JOURNAL, "".join(json.dumps(record) + "\n" for record in records))
    causes = dict(sorted(Counter(image["cause"] for image in unreadable).items()))
    num_images, num_bytes = (sum(shard[name] for shard in shards) for name in ("images", "bytes"))
    about |= {"images": num_images, "bytes": num_bytes, "unreadable": causes, "shards": shards}
    write_whole(out / "pack.json", json.dumps(about, indent=1) + "\n")
    shutil.rmtree(out / _SOURCE, ignore_errors=True)
    directory = default_index(str(out))
    assert directory is not None
    write_index(list_source(str(out)), directory, settled=True)  # we hold the folder's lock
    return Packed(num_images, num_bytes, len(shards), causes, resumed)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Any]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
