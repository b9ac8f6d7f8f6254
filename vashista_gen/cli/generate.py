"""`vashista-gen generate`: write, check or diff the generated packages, all through one comparison."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from vashista_gen import emit
from vashista_gen.cli.console import output, progress, say
from vashista_gen.cli.sources import checkout_output, load_all, shipped, shown
from vashista_gen.emit import Change
from vashista_gen.errors import DriftError, UsageError
from vashista_gen.plan import Plan, make_plan
from vashista_gen.spec import Spec

STYLES = {"missing": "green", "stale": "yellow", "edited": "red", "orphan": "magenta"}
DONE = {"missing": "created", "stale": "updated", "edited": "overwritten", "orphan": "removed"}


def run(paths: list[Path] | None, out: Path | None, *, check: bool, diff: bool, force: bool) -> None:
    """Writes what differs; raises DriftError where --check or --diff finds a difference, or an edit would be lost."""
    if check and diff:
        raise UsageError("--check and --diff exclude each other", "give one of them")
    if force and (check or diff):
        raise UsageError("--force writes, --check and --diff do not", "leave out --force")
    folder = checkout_output() if out is None else out
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{shown(folder)} is not a folder", "choose another one with --out")
    specs = load_all(paths or shipped())
    with progress(len(specs)) as step:
        changes = emit.compare(_plans(specs, step), folder, whole=not paths)
    console = output()
    command = _command(paths, out)
    packages = f"{len(specs)} package{'s' if len(specs) > 1 else ''}"
    if not changes:
        say(console, f"{packages} in {shown(folder)} {'is' if len(specs) == 1 else 'are'} current")
    elif diff:
        _print_diffs(console, changes)
        raise DriftError(_differ(changes, folder), command)
    elif check:
        _list(console, changes, folder, dict(zip(STYLES, STYLES, strict=True)))
        by_hand = any(change.by_hand for change in changes)
        raise DriftError(_differ(changes, folder), f"{command}{' --force' if by_hand else ''}")
    else:
        by_hand = [change for change in changes if change.by_hand]
        if by_hand and not force:
            _list(console, by_hand, folder, dict.fromkeys(STYLES, "by hand"))
            message = f"{_files(len(by_hand))} in {shown(folder)} edited by hand would be lost; nothing was written"
            raise DriftError(
                message, f"move the edit into spec or template (see it with {command} --diff), or {command} --force"
            )
        emit.apply(changes, folder)
        _list(console, changes, folder, DONE)
        say(console, f"{packages} in {shown(folder)}: {_counts(DONE[change.kind] for change in changes)}")
        if paths:
            _say_next(console, specs, folder, out)


def _say_next(console: Console, specs: list[Spec], folder: Path, out: Path | None) -> None:
    """How the named packages are imported; of those in the checkout, which of them the next run without SPEC removes."""
    for one in specs:
        if out is not None:
            say(console, f"next: in Python, with {shown(folder)} on sys.path: import {one.name} as op")
            continue
        if Path(one.source.file).resolve().parent != (folder.parent / "specs").resolve():
            say(
                console,
                f"{one.source.file} lies outside specs/: to `vashista-gen generate` and `make test` its package is an "
                "orphan, and the first removes it; move it into specs/, or keep the package elsewhere with --out",
                "yellow",
            )
        say(console, f"next: in Python, import vashista_gen.generated.{one.name} as op")


def _plans(specs: list[Spec], step: Callable[[str], None]) -> Iterator[Plan]:
    for spec in specs:
        step(spec.name)
        yield make_plan(spec)


def _command(paths: list[Path] | None, out: Path | None) -> str:
    """The command that brings the folder up to date."""
    words = ["vashista-gen", "generate", *(shown(path) for path in paths or ())]
    return shlex.join([*words, "--out", shown(out)] if out is not None else words)


def _list(console: Console, changes: list[Change], folder: Path, words: dict[str, str]) -> None:
    for change in changes:
        say(console, f"{words[change.kind]:<11} {shown(folder / change.path)}", STYLES[change.kind])


def _print_diffs(console: Console, changes: list[Change]) -> None:
    for change in changes:
        for line in change.diff().splitlines():
            style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
            say(console, line, style)


def _differ(changes: list[Change], folder: Path) -> str:
    counts = _counts(change.kind for change in changes)
    return f"{_files(len(changes))} in {shown(folder)} not as generated: {counts}"


def _files(count: int) -> str:
    return f"{count} file{'s' if count > 1 else ''}"


def _counts(words: Iterator[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(Counter(words).items()))
