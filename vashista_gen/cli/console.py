"""Where the commands print: plain and never cut when the output is not a terminal, or when NO_COLOR is set."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PLAIN_WIDTH = 10_000  # columns of an output that is no terminal: nothing is wrapped
SHOW_AFTER = 1.0  # seconds of work before a progress bar appears


def output() -> Console:
    """The console of stdout, for results."""
    return _console(sys.stdout)


def errors() -> Console:
    """The console of stderr, for errors and progress."""
    return _console(sys.stderr)


def say(console: Console, text: str = "", style: str | None = None) -> None:
    """Print a line as it is: no markup, no highlighting, never wrapped by us."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def new_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table of one header row; the columns named in `right` are aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return table


def show(console: Console, table: Table, *, keep_lines: bool = False) -> None:
    """Print a table; with `keep_lines` its cells are not wrapped, whatever the width of the terminal."""
    if keep_lines:
        console = _console(console.file, wide=True)
    console.print(table, crop=False, markup=False, highlight=False)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar of `total` steps on stderr, shown once the work takes over a second; call what it gives at each step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = errors()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=total)
    begun, at = time.monotonic(), -1

    def step(name: str) -> None:
        nonlocal at
        at += 1
        bar.update(task, description=name, completed=at)
        if time.monotonic() - begun > SHOW_AFTER:
            bar.start()

    try:
        yield step
    finally:
        bar.stop()


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr with the time elapsed while one long step runs; a single line where there is no terminal."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = errors()
    if not console.is_terminal:
        say(console, f"{what} ...")
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as spinner:
        spinner.add_task(what, total=None)
        yield


def _console(stream: TextIO, *, wide: bool = False) -> Console:
    from rich.console import Console

    terminal = stream.isatty()
    size = {"width": PLAIN_WIDTH, "height": 100} if wide or not terminal else {}
    # no colour system: no escape codes at all, which is more than rich does for NO_COLOR
    plain = not terminal or bool(os.environ.get("NO_COLOR"))
    return Console(
        file=stream, color_system=None if plain else "auto", force_terminal=terminal, highlight=False, **size
    )
