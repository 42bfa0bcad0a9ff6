"""Commands for the images before a run: `index`. The work is in trainer/data, imported only when it is asked for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.terminal import SpecFile, console, load_spec, say
from service.errors import MillionwayError

if TYPE_CHECKING:
    from trainer.data.index import Index

app = typer.Typer()

Source = Annotated[str, typer.Argument(metavar="DATA", help="A folder of images, tar or parquet files, one such file, a list, or a URL.")]


@app.command()
def index(
    data: Source,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Default: within the folder, or beside the file.")
    ] = None,
) -> None:
    """Find the images once, so that runs start at once: an index that is there is brought up to date, and no image changes its id."""
    from trainer.data.images import default_index
    from trainer.errors import TrainerError

    path = _as_named(data)
    directory = output or default_index(path)
    if directory is None:
        raise MillionwayError(f"{data} is a URL: say where the index is to be with -o DIR, and name it as data.index in the specification")
    try:
        found, num_before = _brought_up_to_date(path, directory)
    except TrainerError as error:
        raise MillionwayError(str(error)) from None
    except OSError as error:
        raise MillionwayError(f"the index cannot be written to {directory} ({error}): give another folder with -o") from None
    gone = 0 if found.gone_n is None else int(found.gone_n.sum())
    new = len(found) - num_before
    say(f"{len(found) - gone:,} images ({new:,} new, {gone:,} gone), {len(found.label_names)} labels: {directory}")
    for cause, count in sorted(found.skipped.counts.items()):
        say(f"skipped {count:,} {cause}, e.g. {found.skipped.examples[cause][0]}")


@app.command()
def preview(
    spec_file: SpecFile,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="A .png, .jpg or .webp file.")] = Path("views.png"),
    images: Annotated[int, typer.Option(min=1, max=64, help="Rows: images, evenly spaced.")] = 8,
    views: Annotated[int, typer.Option(min=1, max=32, help="Columns: each image's views of the first epochs.")] = 8,
) -> None:
    """Draw the views that the augmentation makes of the images, as the run will see them.

    Below each is what was drawn for it: the part that was cut out, the factors of brightness, contrast and saturation (b, c, s) and the
    turn of the hue (h), in their order, and the rest.
    """
    from tempfile import TemporaryDirectory

    from trainer.data.images import prepare_images
    from trainer.data.preview import write_preview
    from trainer.errors import TrainerError

    spec = load_spec(spec_file)
    try:
        with TemporaryDirectory() as directory:
            found = prepare_images(spec, Path(directory) / "index", lambda: None)
            unreadable = write_preview(found, spec, output, images, views)
    except TrainerError as error:
        raise MillionwayError(str(error)) from None
    for why in unreadable:
        say(why)
    say(f"{min(images, len(found))} of {len(found):,} images, {views} views each: {output}")


@app.command()
def inspect(
    data: Source,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where to put the report; default: inspect-NAME here.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, max=1024, help="Processes; default: one per core.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Look at so many images, evenly spaced.")] = None,
    channels: Annotated[int, typer.Option(min=1, max=64, help="Of the images; see data.channels.")] = 3,
) -> None:
    """Look at all images before a run: sizes, formats, mean and deviation, unreadable ones, duplicates. Writes a page and a JSON file."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from trainer.data.inspect_report import inspect_images, summary, write_report
    from trainer.errors import TrainerError

    path = _as_named(data)
    directory = (output or Path(f"inspect-{Path(path).name or 'images'}")).absolute()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_workers = cores if workers is None else workers
    try:
        found = _up_to_date(path, directory / "index")
        with Progress(TextColumn("inspecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("", total=None)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            made = inspect_images(found, limit=limit, channels=channels, num_workers=num_workers, progress=show)
        page, numbers = write_report(found, made, directory)
    except TrainerError as error:
        raise MillionwayError(str(error)) from None
    except OSError as error:
        raise MillionwayError(f"the report cannot be written to {directory} ({error}): give another folder with -o") from None
    for line in summary(made.about):
        say(line)
    say(f"{page}\n{numbers}")


def _up_to_date(path: str, otherwise: Path) -> Index:
    """The index of `path` in its own place, or in `otherwise` where that cannot be written. Raises BadData, StorageError, and OSError."""
    from trainer.data.images import default_index

    own = default_index(path)
    if own is not None:
        try:
            return _brought_up_to_date(path, own)[0]
        except OSError:  # a read-only file system, or another's folder
            pass
    return _brought_up_to_date(path, otherwise)[0]


def _brought_up_to_date(path: str, directory: Path) -> tuple[Index, int]:
    """The index of `path` in `directory`, and how many images it had before. Nothing is listed where nothing has changed."""
    from trainer.data.index import Index, is_fresh, write_index
    from trainer.data.sources import list_source

    before = Index(directory) if (directory / "index.json").exists() else None
    if before is not None and before.root == path and is_fresh(before, path):
        return before, len(before)
    listing = list_source(path)
    is_older = before is not None and (before.kind, before.root) == (listing.kind, listing.root)
    return write_index(listing, directory, before), len(before) if before is not None and is_older else 0


def _as_named(data: str) -> str:
    """Absolute; a link stays what it is called."""
    return data if "://" in data else os.path.abspath(data)  # noqa: PTH100


@app.command()
def pack(
    data: Source,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="An empty or new folder, or an earlier one to go on with.")],
    size: Annotated[int, typer.Option(min=16, max=8192, help="Pixels of the shorter side; smaller images keep theirs.")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG.")] = 90,
    shard_mib: Annotated[int, typer.Option(min=1, help="Most MiB of a shard.")] = 256,
    labels: Annotated[bool, typer.Option(help="Keep the labels that folder names or the data give.")] = True,
    workers: Annotated[int | None, typer.Option(min=1, max=1024, help="Processes; default: one per core.")] = None,
) -> None:
    """Copy images into tar shards of small JPEGs, for slow file systems and clusters. The same command again goes on where it stopped."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from trainer.data.pack import pack as pack_images
    from trainer.data.pack_shards import PackSettings
    from trainer.errors import TrainerError

    path = _as_named(data)
    num_workers = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    began, first = 0.0, 0

    def show(done: int, total: int) -> None:
        nonlocal began, first
        if not began:
            began, first = time.monotonic(), done
        rate = (done - first) / max(1e-3, time.monotonic() - began)
        progress.update(task, completed=done, total=total, rate=f"{rate:,.0f} images/s" if done > first else "")

    try:
        with Progress(TextColumn("packing"), *columns, console=console) as progress:
            task = progress.add_task("", total=None, rate="")
            packed = pack_images(path, output, PackSettings(size, quality, shard_mib * 2**20, labels), num_workers, show)
    except TrainerError as error:
        raise MillionwayError(str(error)) from None
    resumed = f" ({packed.num_resumed:,} images done before)" if packed.num_resumed else ""
    made = f"{packed.num_images:,} images, {packed.num_bytes / 2**20:,.1f} MiB in {packed.num_shards:,} shards{resumed}"
    say(f"{made}: train with data.path: {output.absolute()}")
    for cause, count in packed.unreadable.items():
        say(f"left out {count:,}: {cause} (unreadable.jsonl)")
