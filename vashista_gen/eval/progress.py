"""One line for each stage with its seconds; while it runs a bar on a terminal, its name and quarters elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Stages:
    """Prints to a console."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str = "", style: str | None = None) -> None:
        """A line as it is."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def count(self, what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """A stage of `total` steps; call what it gives after each."""
        console, begun = self.console, time.monotonic()
        shown = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        columns = (TextColumn("{task.description}"), *shown)
        if not console.is_terminal:
            console.print(f"{what} ... ", end="", markup=False, highlight=False, soft_wrap=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task, done = bar.add_task(what, total=total), 0

            def advance() -> None:
                nonlocal done
                done += 1
                bar.advance(task)
                if not console.is_terminal and total and 4 * done // total > 4 * (done - 1) // total:
                    console.print(f"{100 * done // total} % ", end="", markup=False, highlight=False, soft_wrap=True)

            try:
                yield advance
            except BaseException:
                if not console.is_terminal:
                    self.say()  # what comes next is an error, on a line of its own
                raise
        name = f"{what} ... " if console.is_terminal else ""
        self.say(f"{name}{time.monotonic() - begun:.1f} s")
