"""What a run prints and writes: ratios first, then times, then bytes; bench.csv and bench.json."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from vashista_gen.bench import results
from vashista_gen.bench.require import short
from vashista_gen.bench.results import CaseResult, Result

RATIOS = {
    "speedup": "sparse\nvs SDPA",
    "speedup_of_fastest_tenths": "the same,\nfastest tenths",
    "refreshed_speedup": "mean of steps\nvs SDPA",
    "over_dense": "sparse\nvs dense op",
    "dense_speedup": "dense op\nvs SDPA",
    "sparse_vs_flashinfer": "sparse vs\nFlashInfer",
    "dense_vs_flashinfer": "dense op vs\nFlashInfer",
    "attend_vs_flashinfer_pages": "attention vs\nFlashInfer, same pages",
    "attend_vs_tilelang_pages": "attention vs\nTileLang, same pages",
    "choice": "its own choice\nvs dense op",
}
ALWAYS = ("speedup", "over_dense", "dense_speedup")
BUSY = 0.4  # of the CPUs in use before the run
COLUMNS = ("context", "batch", "contestant", "state", "median_us", "fastest_tenth_us", "rounds", "error", "bytes",
           "gb_per_s", "floor_us", "speedup_vs_sdpa", "note")  # fmt: skip


def show(console: Console, result: Result) -> None:
    """Prints the tables."""
    _print(console, _ratios(result))
    for ratio in ("speedup", "over_dense"):
        line(console, results.break_even(result.cases, ratio)[0], "bold")
    line(console, _use(result))
    line(console)
    _print(console, _times(result))
    _print(console, _bytes(result))
    if result.bandwidth is not None:
        line(console, f"Floor: bytes / {result.bandwidth / 1e9:,.0f} GB/s, the card's bandwidth by its data sheet.")
    for name, reason in {n: r for case in result.cases for n, r in case.skipped.items()}.items():
        where = [short(case.context) for case in result.cases if case.skipped.get(name) == reason]
        line(console, f"left out: {name} at {', '.join(where)}: {reason}", "yellow")
    for case in result.cases:
        if case.failed:
            line(console, f"FAILED at {short(case.context)}: {case.failed}", "red")
    if result.cold_import:
        cold = result.cold_import
        line(
            console,
            f"Cold import: package and compiled kernels {cold['package_s']:.2f} s "
            f"beyond torch's {cold['torch_s']:.2f} s, medians of {cold['runs']} fresh interpreters each.",
        )


def show_environment(console: Console, found: dict[str, Any]) -> None:
    """Device, torch, threads and load; a warning where other work disturbs the times."""
    line(
        console,
        f"{found['device']}: {found['processor']}, {found['dtype']}, batch {found['batch']}; torch {found['torch']}, "
        f"{found['threads']} threads on {found['cpus']} CPUs",
    )
    load = found["load_before"]
    if load is not None and load > BUSY * found["cpus"]:
        line(console, f"load {load:.1f}: other work runs here, and its share of the CPUs shows in every time", "yellow")


def line(console: Console, text: str = "", style: str | None = None) -> None:
    """A line as it is."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _use(result: Result) -> str:
    """What the op makes of the break-even."""
    if result.dense_up_to:
        return (
            f"Told the lengths (max_seq_len), the op reads whole what has up to {result.dense_up_to:,} tokens "
            "at this batch; times of the sparse op below that are of routing all the same."
        )
    return "The op routes every step that can drop a token: no break-even is known; next: vashista-gen tune."


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", show_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print(console: Console, table: Table) -> None:
    console.print(table, crop=False, markup=False, highlight=False)
    line(console)


def _state(case: CaseResult) -> str:
    """What stands in place of a time."""
    return "FAILED" if case.failed else "-"


def _ratios(result: Result) -> Table:
    shown = [name for name in RATIOS if name in ALWAYS or any(case.ratios[name] for case in result.cases)]
    table = _table("How many times faster (medians)", "context", *(RATIOS[name] for name in shown))
    for case in result.cases:
        cells = [_state(case) if (x := case.ratios[name]) is None else f"{x:.2f}x" for name in shown]
        table.add_row(short(case.context), *cells, style="red" if case.failed else None)
    return table


def _times(result: Result) -> Table:
    labels = {name: label for case in result.timed for name, label in case.labels.items()}
    title = "Microseconds of one step of one layer: median (fastest tenth)"
    table = _table(title, "", *(short(case.context) for case in result.cases))
    table.columns[0].justify = "left"
    for name, label in labels.items():
        table.add_row(label, *(_time(case, name) for case in result.cases))
    return table


def _time(case: CaseResult, name: str) -> str:
    timing = case.times.get(name)
    return f"{timing.median * 1e6:,.0f} ({timing.fastest_tenth * 1e6:,.0f})" if timing else _state(case)


def _bytes(result: Result) -> Table:
    columns = ["context", "dense\nMB", "sparse\nMB", "share", "dense op\nGB/s", "sparse op\nGB/s"]
    known = result.bandwidth is not None
    columns += ["dense floor\nus", "sparse floor\nus", "dense op\nof floor", "sparse op\nof floor"] if known else []
    table = _table("Bytes read in one step", *columns)
    for case in result.cases:
        rates = [case.rate(name) for name in ("dense", "sparse")]
        cells = [f"{case.dense_bytes / 1e6:,.2f}", f"{case.sparse_bytes / 1e6:,.2f}",
                 f"{case.sparse_bytes / case.dense_bytes:.1%}"]  # fmt: skip
        cells += [_state(case) if rate is None else f"{rate / 1e9:,.1f}" for rate in rates]
        if known:
            cells += [f"{result.floor(read) * 1e6:,.1f}" for read in (case.dense_bytes, case.sparse_bytes)]
            cells += [_state(case) if rate is None else f"{rate / result.bandwidth:.0%}" for rate in rates]
        table.add_row(short(case.context), *cells)
    return table


def write(result: Result, folder: Path) -> list[Path]:
    """bench.csv, a row for each context and contestant, and bench.json with everything."""
    folder.mkdir(parents=True, exist_ok=True)
    table, whole = folder / "bench.csv", folder / "bench.json"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        rows.writeheader()
        rows.writerows(row for case in result.cases for row in _rows(result, case))
    record = dataclasses.asdict(result)
    for stored, case in zip(record["cases"], result.cases, strict=True):
        stored["ratios"] = case.ratios
        stored["floor_s"] = {k: result.floor(getattr(case, f"{k}_bytes")) for k in ("dense", "sparse")}
    record["break_even_context"] = results.break_even(result.cases)[1]
    record["break_even_with_dense"] = results.break_even(result.cases, "over_dense")[1]
    whole.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return [table, whole]


def _rows(result, case):
    where = {"context": case.context, "batch": case.batch}
    if case.failed:
        yield {**where, "state": "FAILED", "note": case.failed}
        return
    for name, timing in case.times.items():
        read, rate, ratio = case.bytes_of(name), case.rate(name), case.ratio("sdpa", name)
        floor = None if read is None else result.floor(read)
        yield {
            **where, "contestant": name, "state": "ok", "median_us": f"{timing.median * 1e6:.2f}",
            "fastest_tenth_us": f"{timing.fastest_tenth * 1e6:.2f}", "rounds": timing.rounds,
            "error": f"{case.errors[name]:.2g}", "bytes": read, "gb_per_s": rate and f"{rate / 1e9:.2f}",
            "floor_us": floor and f"{floor * 1e6:.2f}", "speedup_vs_sdpa": ratio and f"{ratio:.3f}",
        }  # fmt: skip
    for name, reason in case.skipped.items():
        yield {**where, "contestant": name, "state": "left out", "note": reason}
