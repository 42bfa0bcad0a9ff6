"""Time and memory of the classifier's step against the number of classes, as an SVG.

python -m benchmarks.classifier --growth --json growth.json
python -m benchmarks.classifier_figure growth.json docs/classifier.svg
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, GAP = 360, 300, 70, 46, 90
COLOURS = {"ours-fp32": "#0b6e4f", "ours-bf16": "#3d8bfd", "dense": "#c1440e"}


def panel(rows: list[dict[str, Any]], of: Callable[[dict[str, Any]], float], title: str, unit: str, left: int) -> str:
    """Both axes logarithmic, one line for each name."""
    xs, ys = [math.log10(row["classes"]) for row in rows], [math.log10(of(row)) for row in rows]
    low, high = math.floor(min(ys)), math.floor(max(ys)) + 1
    first, last = math.floor(min(xs)), max(math.ceil(max(xs)), math.floor(min(xs)) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - first) / (last - first) * WIDTH, TOP + (high - y) / (high - low) * HEIGHT

    parts = [f'<text x="{left}" y="{TOP - 18}" class="title">{escape(title)}</text>']
    for power in range(low, high + 1):
        _, y = place(first, power)
        parts.append(f'<path d="M{left} {y:.1f}h{WIDTH}" class="grid"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(_number(power))}{unit}</text>')
    for power in range(first, last + 1):
        x, _ = place(power, low)
        parts.append(f'<path d="M{x:.1f} {TOP}v{HEIGHT}" class="grid"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">10<tspan dy="-5" class="small">{power}</tspan></text>'
        )
    parts.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 38}" text-anchor="middle">classes</text>')
    for name, colour in COLOURS.items():
        points = [place(math.log10(row["classes"]), math.log10(of(row))) for row in rows if row["name"] == name]
        if points:
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(f'<path d="M{line}" stroke="{colour}" class="line"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    return "\n".join(parts)


def figure(rows: list[dict[str, Any]]) -> str:
    rows = [row for row in rows if row["name"] in COLOURS and row.get("seconds")]
    about = rows[0]
    second = LEFT + WIDTH + GAP
    panels = [
        panel(rows, lambda row: row["seconds"], f"Seconds per step, batch {about['batch']}", "", LEFT),
        panel(rows, lambda row: max(1.0, row["extra_bytes"] / 1e6), "Memory beyond rows and momentum", " MB", second),
    ]
    legend = []
    for i, (name, colour) in enumerate(COLOURS.items()):
        x, y = LEFT + 130 * i, TOP + HEIGHT + 66
        legend.append(f'<path d="M{x} {y - 4}h24" stroke="{colour}" class="line"/><text x="{x + 30}" y="{y}">{escape(name)}</text>')
    style = (
        "text{font:13px system-ui,sans-serif;fill:#333}.title{font-weight:600}.small{font-size:9px}"
        ".grid{stroke:#ddd;fill:none}.line{fill:none;stroke-width:2}"
    )
    size = f'width="{second + WIDTH + 30}" height="{TOP + HEIGHT + 84}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style><rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join([*panels, *legend])
        + "\n</svg>\n"
    )


def _number(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:.{-power}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="what --growth --json wrote")
    parser.add_argument("svg", type=Path)
    arguments = parser.parse_args()
    arguments.svg.write_text(figure(json.loads(arguments.measured.read_text())))


if __name__ == "__main__":
    main()
