"""What a benchmark says: a table with ratios first, CSV, JSON and a picture; and whether requirements are met."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from vashista_gen.errors import UsageError

RATIOS = {"speedup": ("sdpa", "sparse"), "dense_speedup": ("sdpa", "dense"), "over_dense": ("dense", "sparse")}


@dataclass(frozen=True)
class Requirement:
    """NAME@CONTEXT>=X: a ratio of times at a context must reach X."""

    name: str
    context: int
    least: float

    @staticmethod
    def parse(text: str) -> Requirement:
        """Raises UsageError for anything that is not NAME@CONTEXT>=X."""
        found = re.fullmatch(r"(\w+)@(\d+)(k|M)?>=(\d+(?:\.\d+)?)", text.replace(" ", ""))
        if found is None or found[1] not in RATIOS:
            raise UsageError(
                f"--require {text!r} is not NAME@CONTEXT>=X",
                f"write one of {', '.join(RATIOS)}, such as speedup@8k>=3",
            )
        return Requirement(found[1], int(found[2]) * {None: 1, "k": 1024, "M": 1024**2}[found[3]], float(found[4]))

    def miss(self, rows: list[dict[str, Any]]) -> str | None:
        """What is wrong, or None when it is met."""
        for row in rows:
            if row["context"] == self.context:
                value = row.get(self.name)
                met = value is not None and value >= self.least
                return None if met else f"{self.name} at {self.context} is {value}, required is {self.least}"
        return f"{self.name} at {self.context} was not measured; next: add it to --context"


def row_of(context: int, times: dict[str, dict[str, float]], dense_bytes: int, sparse_bytes: int) -> dict[str, Any]:
    """One case as a flat row: ratios of medians, medians and fastest tenths in microseconds, bytes, GB/s reached."""
    row: dict[str, Any] = {"context": context}
    for name, (slow, fast) in RATIOS.items():
        if slow in times and fast in times:
            row[name] = round(times[slow]["median"] / times[fast]["median"], 3)
    for name, time in times.items():
        row[f"{name}_us"], row[f"{name}_best_us"] = round(time["median"], 2), round(time["best"], 2)
    row |= {"dense_bytes": dense_bytes, "sparse_bytes": sparse_bytes}
    row["dense_gb_s"] = round(dense_bytes / times["dense"]["median"] / 1e3, 1)
    row["sparse_gb_s"] = round(sparse_bytes / times["sparse"]["median"] / 1e3, 1)
    return row


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """The rows for the terminal."""
    grid = Table(title=title, title_justify="left")
    columns = ["context", *(r for r in RATIOS if r in rows[0]), "sdpa_us", "dense_us", "sparse_us", "route_us"]
    columns = [c for c in [*columns, "attend_us", "update_us", "dense_gb_s", "sparse_gb_s"] if c in rows[0]]
    for column in columns:
        grid.add_column(column.replace("_us", " us").replace("_gb_s", " GB/s").replace("_", " "), justify="right")
    for row in rows:
        grid.add_row(*(f"{row[c]:,}" for c in columns))
    return grid


def write(output: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> list[Path]:
    """bench.json, bench.csv and bench.png in `output`; gives their paths."""
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"bench.{kind}" for kind in ("json", "csv", "png")]
    paths[0].write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    with paths[1].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _picture(paths[2], about, rows)
    return paths


def _picture(path: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Log-log time against context, with the time the bytes alone would take where the bandwidth is known."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    contexts = [row["context"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(7.5, 5), layout="constrained")
    for name, label in (("sdpa", "torch SDPA, contiguous"), ("dense", "dense op, paged"), ("sparse", "sparse op")):
        if f"{name}_us" in rows[0]:
            axes.plot(contexts, [row[f"{name}_us"] for row in rows], marker="o", label=label)
    if about.get("bandwidth_gb_s"):
        floor = [row["sparse_bytes"] / about["bandwidth_gb_s"] / 1e3 for row in rows]
        axes.plot(contexts, floor, linestyle=":", color="grey", label=f"sparse bytes at {about['bandwidth_gb_s']} GB/s")
    axes.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="time of one step and layer (us)")
    axes.set_xticks(contexts, [f"{c // 1024}k" if c % 1024 == 0 else str(c) for c in contexts])
    axes.minorticks_off()
    axes.set_title(f"{about['spec']}, batch {about['batch']}, {about['device']}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
