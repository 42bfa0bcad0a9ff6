"""Files that name images: one path a line (.txt), or a table with a column of paths (.csv, .parquet).

Paths are relative to the folder of the list, or absolute. One that leads out of that folder is skipped: who may use the list may use
what lies beside it, and nothing else.
"""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Callable, Iterable

from service.roots import climbs
from trainer.data.files import Files, is_url
from trainer.data.index import Listing
from trainer.data.parquets import open_parquet
from trainer.errors import BadData

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "url")
LABEL_COLUMNS = ("label", "class", "labels", "target")


def list_txt(files: Files) -> Listing:
    """One path a line; empty lines and those that begin with # are none."""
    lines = (line.strip() for line in _text(files).splitlines())
    return _listing(files, ((line, None) for line in lines if line and not line.startswith("#")))


def list_csv(files: Files) -> Listing:
    """A header that names a column of paths and perhaps one of labels. Raises BadData without one of paths."""
    text = _text(files)
    try:
        delimiter = csv.Sniffer().sniff(text[:4096], ",;\t").delimiter
    except csv.Error:  # a single column
        delimiter = ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    header = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = header
    path_column, label_column = _columns(header, files.root)
    return _listing(files, ((row[path_column] or "", row[label_column] if label_column else None) for row in reader))


def list_parquet_names(files: Files) -> Listing:
    """As list_csv, of a parquet file."""
    with open_parquet(files, "") as file:
        path_column, label_column = _columns(file.schema_arrow.names, files.root)
        table = file.read(columns=[path_column, *([label_column] if label_column else [])])
    paths = table.column(path_column).to_pylist()
    labels = table.column(label_column).to_pylist() if label_column else [None] * len(paths)
    return _listing(files, ((str(path or ""), None if label is None else str(label)) for path, label in zip(paths, labels, strict=True)))


def _text(files: Files) -> str:
    try:
        return files.read("").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"{files.root!r} is no UTF-8 text ({error}): save it as UTF-8") from None


def _columns(header: list[str], where: str) -> tuple[str, str | None]:
    lower = {name.lower(): name for name in header}
    path_column = next((lower[name] for name in PATH_COLUMNS if name in lower), None)
    if path_column is None:
        raise BadData(f"{where!r} has the columns {', '.join(header)}: none is called {', '.join(PATH_COLUMNS)}")
    return path_column, next((lower[name] for name in LABEL_COLUMNS if name in lower), None)


def _listing(files: Files, rows: Iterable[tuple[str, str | None]]) -> Listing:
    root = files.root.rpartition("/")[0]
    is_inside = functools.partial(_is_inside, root, functools.cache(os.path.realpath))
    listing = Listing("list", root)
    if not is_url(root):
        listing.watched[""] = os.stat(files.root).st_mtime_ns  # noqa: PTH116
    labels: list[str | None] = []
    seen: set[str] = set()
    for path, label in rows:
        name = path.strip().removeprefix(root + "/").removeprefix("./")
        if not name:
            listing.skipped.add("that are empty paths", path)
        elif not is_inside(name):
            listing.skipped.add(f"that lead out of {root}", path)
        elif name in seen:
            listing.skipped.add("named twice", path)
        else:
            seen.add(name)
            listing.names.append(name)
            labels.append(label)
    if any(label is not None for label in labels):
        listing.label = labels
    return listing


def _is_inside(root: str, realpath: Callable[[str], str], name: str) -> bool:
    if is_url(name) or name.startswith("/") or climbs(name, in_url=is_url(root)):
        return False
    folder = name.rpartition("/")[0]
    if is_url(root) or not folder:
        return True
    real = realpath(f"{root}/{folder}")  # a link in between may lead anywhere
    return f"{real}/".startswith(f"{realpath(root)}/")
