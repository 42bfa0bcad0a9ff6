"""The report as one page of HTML: nothing is loaded from elsewhere, and it needs no JavaScript."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import cv2

from trainer.data.decode import Unreadable
from trainer.data.index import Index
from trainer.data.reader import Reader, read_pixels

_SIDE = 112
"""Longest side of a picture, in pixels."""
_MOST_LABELS = 40

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b7dd8; --soft: #8881; --warn: #b35900; }
@media (prefers-color-scheme: dark) { :root { --bar: #6aa5f0; --warn: #ffb066; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
h1 + p { margin-top: .2rem; overflow-wrap: anywhere; } .warn { color: var(--warn); } small, .note { opacity: .75; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; } .cards div { background: var(--soft); border-radius: .5rem; padding: .6rem 1rem; }
.cards b { display: block; font-size: 1.3rem; }
table { border-collapse: collapse; margin: .4rem 0 1rem; }
th, td { padding: .15rem .7rem; text-align: left; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.bar { width: 11rem; }
td.bar i { display: block; height: .7rem; background: var(--bar); border-radius: 2px; }
td.heat { text-align: right; background: color-mix(in srgb, var(--bar) var(--share), transparent); }
pre { background: var(--soft); padding: .7rem 1rem; border-radius: .5rem; overflow-x: auto; }
.groups, .group { display: flex; flex-wrap: wrap; gap: .6rem; }
.group { background: var(--soft); border-radius: .5rem; padding: .5rem; }
figure { margin: 0; width: 116px; } figure img { display: block; max-width: 112px; min-height: 16px; }
figcaption { font-size: 11px; line-height: 1.25; overflow-wrap: anywhere; opacity: .8; }
.columns { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 3rem; }
ul { padding-left: 1.2rem; } li { overflow-wrap: anywhere; }
"""


def page(index: Index, about: dict[str, Any], pictures: dict[str, list[list[int]]]) -> str:
    """HTML of a report (inspect_report.py). Its pictures are read anew; one that has become unreadable is left out."""
    reader = Reader(index)
    sections = [
        _head(about),
        _meaning(about),
        "<h2>Duplicates</h2>" + _duplicates(about["duplicates"]) + _groups(reader, pictures["duplicates"]),
        "<h2>Unreadable images</h2>" + _causes(about["unreadable"], "Every image can be read and decoded."),
        "<h2>Files that were skipped</h2>" + _causes(about["skipped"], "No other files were found."),
        "<h2>Sizes</h2>" + _sizes(about) if about["num_readable"] else "",
        "<h2>Formats</h2>" + _formats(about),
        "<h2>Labels</h2>" + _labels(about["labels"]),
        *(
            f"<h2>{title}</h2>" + _groups(reader, pictures[what])
            for title, what in (("Random images", "random"), ("Smallest", "smallest"), ("Largest", "largest"))
        ),
    ]
    title = f"Images of {escape(about['data'])}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _head(about: dict[str, Any]) -> str:
    of = f" of {about['num_images']:,}" if about["num_inspected"] < about["num_images"] else ""
    duplicates, sizes = about["duplicates"], about["sizes"]
    cards = [
        (f"{about['num_inspected']:,}{of}", "images inspected"),
        (f"{about['num_inspected'] - about['num_readable']:,}", "unreadable"),
        (f"{duplicates['num_images']:,}", f"in {duplicates['num_groups']:,} groups of duplicates"),
        (_bytes(about["num_bytes"]), "in all"),
        (" x ".join(map(str, sizes["median"])) if sizes else "-", "pixels, the median image"),
        (f"{len(about['labels']):,}", "labels (never trained on)"),
    ]
    shown = "".join(f"<div><b>{escape(value)}</b>{escape(what)}</div>" for value, what in cards)
    source = f"{escape(about['kind'])}, indexed in {escape(about['index'])}"
    return f"<h1>{escape(about['data'])}</h1><p class=note>{source}</p><div class=cards>{shown}</div>"


def _meaning(about: dict[str, Any]) -> str:
    if not about["num_readable"]:
        return "<h2>What it means for the run</h2><p class=warn>No image can be read: nothing can be trained on these.</p>"
    duplicates, suggested, sizes = about["duplicates"], about["suggested"], about["sizes"]
    lines = []
    if duplicates["num_groups"]:
        lines.append(
            f"<span class=warn>{duplicates['num_images']:,} images ({duplicates['share_of_images']:.2%}) have a duplicate.</span> Every "
            f"image is its own class, so each of the {duplicates['num_wrong_negatives']:,} pairs of duplicates is a wrong negative: the "
            "classifier is trained to tell apart what is the same. <code>data.duplicates: share</code> cures it: duplicates share one "
            "class. <code>drop</code> keeps one image of each group, <code>keep</code> leaves all as they are."
        )
    else:
        lines.append("No duplicates were found: every image can be its own class (<code>data.duplicates: keep</code>).")
    unreadable = about["num_inspected"] - about["num_readable"]
    if unreadable:
        lines.append(f"<span class=warn>{unreadable:,} images cannot be read.</span> A run replaces and counts them, and goes on.")
    if about["num_plain"]:
        lines.append(f"Of one plain colour: {about['num_plain']:,}. They teach nothing; consider removing them.")
    smaller = sizes["num_smaller_than"][str(suggested["image_size"])]
    lines.append(
        f"<code>data.image_size: {suggested['image_size']}</code> is the largest common view, up to 224, that half of the images fill; "
        f"{smaller:,} have a shorter side than that, and are enlarged."
    )
    if len(suggested["mean"]) == 3:
        lines.append("Mean and standard deviation are measured on these images; the default is ImageNet's. Both go into the export.")
    yaml = "\n".join(["data:", *(f"  {name}: {json.dumps(value).strip(chr(34))}" for name, value in suggested.items())])
    return (
        "<h2>What it means for the run</h2><ul>" + "".join(f"<li>{line}</li>" for line in lines) + f"</ul><p>Suggested for the "
        f"specification:</p><pre>{escape(yaml)}</pre>"
    )


def _duplicates(duplicates: dict[str, Any]) -> str:
    rows = [
        ("images beyond the first of their group: the same bytes", duplicates["num_extra_same_bytes"]),
        ("the same pixels in another file", duplicates["num_extra_same_pixels"]),
        ("nearly the same: another size, compression or tone", duplicates["num_extra_near"]),
        ("groups", duplicates["num_groups"]),
        ("images in the largest group", duplicates["largest_group"]),
        ("groups whose images have different labels", duplicates["num_groups_of_several_labels"]),
    ]
    note = "<p class=note>Crops and mirror images are not sought; images of one plain colour are duplicates only where they are equal.</p>"
    return _table([], [[escape(name), _number(count)] for name, count in rows]) + note


def _causes(causes: dict[str, Any], none: str) -> str:
    if not causes:
        return f"<p>{escape(none)}</p>"
    return "".join(
        f"<p><b>{of_cause['count']:,}</b> {escape(cause)}</p><ul>"
        + "".join(f"<li><small>{escape(example)}</small></li>" for example in of_cause["examples"])
        + "</ul>"
        for cause, of_cause in causes.items()
    )


def _sizes(about: dict[str, Any]) -> str:
    sizes, total = about["sizes"], about["num_readable"]
    extremes = [[name, _number(sizes[name][0]), _number(sizes[name][1])] for name in ("smallest", "median", "largest")]
    common = [[_number(width), _number(height), _number(count), _bar(count / total)] for width, height, count in sizes["most_common"]]
    below = [[f"shorter side under {size}", _number(count), _bar(count / total)] for size, count in sizes["num_smaller_than"].items()]
    return (
        "<div class=columns><div>"
        + _table(["by area", "width", "height"], extremes)
        + _table(["", "images", ""], below)
        + f"</div><div><p>Width (columns) by height (rows), in images</p>{_octaves(sizes['octaves'])}"
        + f"<p>The most common of {sizes['num_distinct']:,} sizes</p>{_table(['width', 'height', 'images', ''], common)}</div></div>"
    )


def _octaves(cells: list[list[int]]) -> str:
    widths, heights = sorted({cell[0] for cell in cells}), sorted({cell[1] for cell in cells})
    count = {(width, height): number for width, height, number in cells}
    most = max(count.values())
    rows = []
    for height in heights:
        numbers = [count.get((width, height), 0) for width in widths]
        shares = [
            f"<td class=heat style='--share:{70 * number / most:.0f}%'>{number:,}</td>" if number else "<td></td>" for number in numbers
        ]
        rows.append(f"<tr><th class=n>{height} - {2 * height - 1}</th>{''.join(shares)}</tr>")
    head = "".join(f"<th class=n>{width} - {2 * width - 1}</th>" for width in widths)
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _formats(about: dict[str, Any]) -> str:
    total = max(1, about["num_readable"])
    tables = (("format", "formats"), ("channels", "channels"), ("bits per channel", "bits_per_channel"))
    parts = [
        _table(
            [title, "images", ""],
            [[escape(name if name != "0" else "not known"), _number(count), _bar(count / total)] for name, count in about[key].items()],
        )
        for title, key in tables
    ]
    numbers = [[name, *(_number(value, 4) for value in about[name])] for name in ("mean", "std")]
    channels = ["red", "green", "blue"] if len(about["mean"]) == 3 else [str(i) for i in range(len(about["mean"]))]
    rotated = f"<p>Turned or mirrored by their EXIF orientation, which is applied: {about['num_rotated']:,}.</p>"
    return f"<div class=columns>{''.join(parts)}</div>{rotated}" + _table(["on the scale 0 to 1", *channels], numbers)


def _labels(labels: dict[str, int]) -> str:
    if not labels:
        return "<p>No labels: the images lie in no folders, and no file gives any. None are needed.</p>"
    most = max(labels.values())
    rows = [[escape(name), _number(count), _bar(count / most)] for name, count in list(labels.items())[:_MOST_LABELS]]
    more = f"<p>and {len(labels) - _MOST_LABELS:,} more, in inspect.json</p>" if len(labels) > _MOST_LABELS else ""
    return _table(["label", "images", ""], rows) + more


def _groups(reader: Reader, groups: Iterable[Iterable[int]]) -> str:
    shown = ("".join(_figure(reader, row) for row in rows) for rows in groups)
    return "<div class=groups>" + "".join(f"<div class=group>{figures}</div>" for figures in shown) + "</div>"


def _figure(reader: Reader, row: int) -> str:
    try:
        pixels = read_pixels(reader, row)
    except Unreadable:
        return ""
    height, width = pixels.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    small = cv2.resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    source = f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
    name = escape(reader.index.full_name(row))
    shown = max(height, width, 1) < _SIDE // 2  # an icon of 32 pixels is enlarged
    size = f" width={2 * width} height={2 * height}" if shown else ""
    return f'<figure><img alt="{name}" src="{source}"{size}><figcaption>{name}<br>{width} x {height}</figcaption></figure>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "<tr>" + "".join(f"<th{' class=n' if i else ''}>{name}</th>" for i, name in enumerate(head)) + "</tr>" if head else ""
    cells = ("".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) for row in rows)
    return f"<table>{top}{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _number(value: float, digits: int = 0) -> str:
    return f"<td class=n>{value:,.{digits}f}</td>"


def _bar(share: float) -> str:
    return f"<td class=bar><i style='width:{100 * share:.1f}%'></i></td>"


def _bytes(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"
