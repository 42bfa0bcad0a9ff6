"""The table of data.py, on the screen and as a list of rows."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

from benchmarks.data_peers import Work

CORES = ("one", "one_cpu", "all")
"""One core, one core by its CPU time, all cores."""


class Table:
    """Printed recipe by recipe; the JSON is written with each row."""

    def __init__(self, work: Work, bare: tuple[str, ...], about: dict[str, Any], file: Path | None) -> None:
        self.rows, self._work, self._bare, self._about, self._file = list[dict[str, Any]](), work, bare, about, file
        self._rates: dict[tuple[str, str, str], list[float]] = {}
        """Of each round."""
        self._cores = len(os.sched_getaffinity(0))
        each, ratios = f"{'images/s':>10}", f"{'of ceiling':>12}{'torchvision':>13}"
        print(
            f"{'':25}{'one core':>35}{'one core, CPU':>35}{f'all cores ({self._cores})':>35}\n{'':16}{'recipe':9}{(each + ratios) * 3}",
            flush=True,
        )

    def add(self, recipe: str, rounds: dict[str, list[dict[str, Any]]]) -> None:
        """What was found of each name, round by round."""
        had = {name: found for name, found in rounds.items() if not any("unavailable" in one for one in found)}
        self._rates |= {(name, recipe, cores): [one[cores] for one in found] for name, found in had.items() for cores in CORES}
        for name, found in rounds.items():
            if name in had:
                self._add_row(name, recipe)
            else:
                print(f"{name:16}{recipe:9} - {next(one['unavailable'] for one in found if 'unavailable' in one)}", flush=True)

    def _ratio(self, rates: list[float], to: tuple[str, str, str]) -> float | None:
        """The median of the rounds' ratios: a machine that is slower for a minute is so for both."""
        return statistics.median(a / b for a, b in zip(rates, self._rates[to], strict=True)) if to in self._rates else None

    def _add_row(self, name: str, recipe: str) -> None:
        line = f"{name:16}{recipe:9}"
        for cores in CORES:
            rates = self._rates[name, recipe, cores]
            rate = statistics.median(rates)
            ceiling, peer = self._ratio(rates, ("ceiling", "crop", cores)), self._ratio(rates, ("torchvision", recipe, cores))
            line += f"{rate:10,.0f}{f'{ceiling:.0%}' if ceiling else '-':>12}{f'{peer:.2f} x' if peer else '-':>13}"
            if cores == "one_cpu":
                continue
            num_cores = 1 if cores == "one" else self._cores
            workers = num_cores if name in self._bare else 0 if cores == "one" else num_cores
            row = {"name": name, "images_per_second": round(rate, 1), "recipe": recipe, "size": self._work.size, "cores": num_cores}
            per_cpu = round(statistics.median(self._rates[name, recipe, "one_cpu"]), 1)
            row |= {"images_per_cpu_second": per_cpu if cores == "one" else None, "of_ceiling": ceiling, "of_torchvision": peer}
            self.rows.append(row | {"device": self._work.device, "workers": workers} | self._about)
        print(line, flush=True)
        if self._file:
            self._file.write_text(json.dumps(self.rows, indent=1) + "\n")
