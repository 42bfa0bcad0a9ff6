"""Images in the rows of parquet files: a column of bytes, or of structs with the field `bytes` (Hugging Face's layout)."""

from __future__ import annotations

import bisect
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from trainer.data.files import Files, is_url
from trainer.data.index import Listing
from trainer.errors import BadData

_LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
_MOST_OPEN = 64
"""Files that a process holds open: it may have no more than a thousand in all."""
_MOST_GROUP_BYTES = 256 * 2**20
"""Row groups that a process holds: no image is read alone, and the next ones of a block of files are in the same groups."""


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise BadData("parquet files need pyarrow, which is not installed: pip install pyarrow") from None
    return parquet


def open_parquet(files: Files, name: str) -> Any:
    """Raises OSError, and BadData where it is damaged or pyarrow is missing."""
    parquet = _pyarrow()
    path = files.path(name)
    try:
        return files.patiently(lambda: parquet.ParquetFile(files.open(name) if is_url(path) else path))
    except (ValueError, OSError) as error:  # pyarrow's errors are of both
        if isinstance(error, FileNotFoundError | PermissionError) or (is_url(path) and isinstance(error, OSError)):
            raise
        raise BadData(f"{files.path(name)!r} is no whole parquet file: {error}") from None


def _image_column(schema: Any) -> str | None:
    """The column of image bytes; of several the one that is called `image`, else the first."""
    import pyarrow

    def holds_bytes(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    names = [field.name for field in schema if holds_bytes(field.type)]
    return "image" if "image" in names else names[0] if names else None


def holds_image_bytes(files: Files, name: str = "") -> bool:
    with open_parquet(files, name) as file:
        return _image_column(file.schema_arrow) is not None


def list_parquet(files: Files, names: Sequence[str]) -> Listing:
    """The images in the files, in the order of files and rows."""
    listing = Listing("parquet", files.root, containers=list(names))
    labels: list[str | None] = []
    for number, name in enumerate(names):
        if not is_url(files.root):
            listing.watched[name] = os.stat(files.path(name)).st_mtime_ns  # noqa: PTH116
        with open_parquet(files, name) as file:
            schema = file.schema_arrow
            column = _image_column(schema)
            if column is None:
                raise BadData(f"{files.path(name)!r} has no column of image bytes ({', '.join(schema.names)})")
            num_rows = file.metadata.num_rows
            listing.names += _row_names(file, column, num_rows)
            listing.container += [number] * num_rows
            listing.offset += range(num_rows)
            listing.length += [0] * num_rows
            labels += _labels(file, num_rows)
    if any(label is not None for label in labels):
        listing.label = labels
    return listing


def _row_names(file: Any, column: str, num_rows: int) -> list[str]:
    import pyarrow

    kind = file.schema_arrow.field(column).type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        paths = file.read(columns=[f"{column}.path"]).column(0).combine_chunks().field("path").to_pylist()
        return [path or str(row) for row, path in enumerate(paths)]
    return [str(row) for row in range(num_rows)]


def _labels(file: Any, num_rows: int) -> list[str | None]:
    schema = file.schema_arrow
    column = next((name for name in _LABEL_COLUMNS if name in schema.names), None)
    if column is None:
        return [None] * num_rows
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    class_names = features.get(column, {}).get("names") if isinstance(features.get(column), dict) else None
    values = file.read(columns=[column]).column(0).to_pylist()
    return [
        None
        if value is None
        else class_names[value]
        if class_names and isinstance(value, int) and 0 <= value < len(class_names)
        else str(value)
        for value in values
    ]


class ParquetReader:
    """Bytes of single rows. Keeps the files open, and the last row groups."""

    def __init__(self, files: Files, names: Sequence[str]) -> None:
        self._files, self._names = files, names
        self._open: OrderedDict[int, tuple[Any, str, list[int]]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._group_bytes = 0

    def read(self, container: int, row: int) -> bytes:
        """Raises OSError, and BadData where the file is damaged."""
        if container not in self._open:
            file = open_parquet(self._files, self._names[container])
            column = _image_column(file.schema_arrow)
            assert column is not None
            ends, end = [], 0
            for group in range(file.num_row_groups):
                end += file.metadata.row_group(group).num_rows
                ends.append(end)
            self._open[container] = (file, column, ends)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)[1][0].close(force=True)
        self._open.move_to_end(container)
        file, column, ends = self._open[container]
        group = bisect.bisect_right(ends, row)
        values = self._groups.get((container, group))
        if values is None:
            values = self._files.patiently(lambda: file.read_row_group(group, columns=[column]).column(0))
            self._groups[container, group] = values
            self._group_bytes += values.nbytes
            while self._group_bytes > _MOST_GROUP_BYTES and len(self._groups) > 1:
                self._group_bytes -= self._groups.popitem(last=False)[1].nbytes
        else:
            self._groups.move_to_end((container, group))
        value = values[row - (ends[group - 1] if group else 0)].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        return data or b""

    def close(self, container: int) -> None:
        """The next read opens the file anew."""
        if container in self._open:
            self._open.pop(container)[0].close(force=True)
