"""What the demo prints: progress while it works, then one table and two texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


class Stages:
    """One line for each stage, with its seconds; while it runs, a bar on a terminal and the stage's name elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def run(self, what: str, work: Callable, *args: Any) -> Any:
        """work(*args), as a stage of unknown length."""
        with self.count(what, None):
            return work(*args)

    @contextmanager
    def count(self, what: str, total: int | None) -> Iterator[Callable[[], None]]:
        """A stage of `total` steps; call what it gives after each."""
        console, begun = self.console, time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        if not console.is_terminal:
            console.print(f"{what} ... ", end="", highlight=False, soft_wrap=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
        name = f"{what} ... " if console.is_terminal else ""
        console.print(f"{name}{time.monotonic() - begun:.1f} s", highlight=False, soft_wrap=True)


def table(result: dict[str, Any]) -> Table:
    """The demo's one table: a column for each way to attend, a row for each figure."""
    computed = "C kernels" if result["kernels"] == "c" else "torch reference"
    title = f"{result['model']}, {result['steps']} tokens after {result['tokens']:,}, all layers; {computed}, float32"
    shown = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    shown.add_column("")
    for name in ("torch SDPA\ncontiguous KV", "dense op\npaged KV", "sparse op\npaged KV"):
        shown.add_column(name, justify="right")
    times = result["time_per_token_and_layer"]
    kinds = ("torch_sdpa", "dense_op", "sparse_op")
    threads = f"torch: {result['torch_threads']} thread{'s' * (result['torch_threads'] > 1)}"
    shown.add_row(
        f"attention per token and layer, µs: median ({threads})", *(f"{times[k]['median_us']:,.0f}" for k in kinds)
    )
    shown.add_row("  fastest tenth", *(f"{times[k]['p10_us']:,.0f}" for k in kinds))
    shown.add_row("  in it: choosing pages", "", "", f"{times['sparse_op_routing']['median_us']:,.0f}")
    shown.add_row("  in it: renewing a summary", "", "", f"{times['sparse_op_summary_update']['median_us']:,.0f}")
    shown.add_row(
        "KV bytes read, share", "100 %", "100 %", f"{result['share_of_kv_bytes_read']:.1%}".replace("%", " %")
    )
    shown.add_row("softmax mass kept, mean (left out: delta)", "1", "1", _kept(result["mass_kept_mean"]))
    error = f"{result['output_error_mean']:.3f} ({result['output_error_p90']:.3f})"
    shown.add_row("error of the attention output, relative: mean (p90)", "", "0", error)
    shown.add_row("KL(dense || sparse) of next tokens, nats, mean", "", "0", f"{result['kl_nats_mean']:.4f}")
    same = f"{result['next_token_agreement']:.1%}".replace("%", " %")
    shown.add_row("most likely next token as dense", "", "100 %", same)
    shown.add_row(
        "perplexity of these tokens", *(f"{result['perplexity'][k]:.3f}" for k in ("contiguous", "dense", "sparse"))
    )
    return shown


def texts(console: Console, written: dict[str, str]) -> None:
    """The end of the prefix, and how the model goes on by itself, dense and sparse."""
    for title, name in (("the document so far", "prefix"), ("goes on, dense", "dense"), ("goes on, sparse", "sparse")):
        lead = "... " if name == "prefix" else ""
        console.print(Text(f"{title}: ", style="bold") + Text(lead + " ".join(written[name].split())), soft_wrap=True)
    same = "the same text" if written["dense"] == written["sparse"] else "the texts part"
    console.print(f"{same}; greedy, 40 tokens each", highlight=False)


def _kept(mass: float) -> str:
    return f"{mass:.3f} ({1 - mass:.3f})"
