"""{path: text} -> disk: write, check or diff, all through one comparison."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vashista_gen.emit.render import manifest_entry, manifest_text, render
from vashista_gen.errors import UsageError
from vashista_gen.plan import Plan

MANIFEST = "MANIFEST.json"
IGNORED = ("__pycache__", "lib", "verified.json")  # compiled libraries and records live beside the sources


@dataclass(frozen=True)
class Change:
    """One file that differs. kind: missing, stale (spec or template changed), edited (by hand), orphan."""

    path: str
    kind: str
    old: str | None
    new: str | None

    def diff(self) -> str:
        """Unified diff from the file on disk to what it should be."""
        old, new = (self.old or "").splitlines(keepends=True), (self.new or "").splitlines(keepends=True)
        return "".join(difflib.unified_diff(old, new, f"a/{self.path}", f"b/{self.path}"))


def compare(plans: Iterable[Plan], out: Path, *, whole: bool) -> list[Change]:
    """What must change in `out` for the plans' packages to be current.

    whole  the plans are all the packages `out` should hold: any other package in it is an orphan.
    """
    recorded = _recorded(out)
    entries = dict(recorded) if not whole else {}
    changes = []
    for plan in plans:
        rendered = render(plan)
        name = plan.spec.name
        entries[name] = manifest_entry(plan, rendered)
        changes += _compare_package(out, name, rendered, recorded.get(name, {}).get("files", {}))
    if whole:
        for folder in sorted(p for p in out.glob("*/") if (p / "constants.py").is_file() and p.name not in entries):
            changes += _compare_package(out, folder.name, {}, {})
    for path, text in ((MANIFEST, manifest_text(entries)), ("__init__.py", _INIT)):
        old = _read(out / path)
        if old != text:
            changes.append(Change(path, "missing" if old is None else "stale", old, text))
    return changes


_INIT = '"""Generated packages, one a spec; see MANIFEST.json. Refresh with: vashista-gen generate."""\n'


def apply(changes: list[Change], out: Path) -> None:
    """Writes the changes; files that are the same are not touched. A package is complete or not there.

    Every new text is written beside its place first, and only then are they all moved in, the manifest last.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".generate-", dir=out))
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}", "choose another folder with --out") from error
    try:
        writes = [change for change in changes if change.new is not None]
        for i, change in enumerate(writes):
            (scratch / str(i)).write_text(change.new, encoding="utf-8")
        for i, change in sorted(enumerate(writes), key=lambda item: item[1].path == MANIFEST):
            target = out / change.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / str(i), target)
        for change in changes:
            if change.new is None:
                (out / change.path).unlink()
        for folder in {(out / c.path).parent for c in changes if c.new is None}:
            _remove_empty(folder, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _compare_package(out: Path, name: str, rendered: dict[str, str], recorded: dict[str, str]) -> list[Change]:
    changes = []
    for path, text in rendered.items():
        old = _read(out / name / path)
        if old == text:
            continue
        untouched = old is not None and hashlib.sha256(old.encode()).hexdigest() == recorded.get(path)
        kind = "missing" if old is None else "stale" if untouched else "edited"
        changes.append(Change(f"{name}/{path}", kind, old, text))
    present = {p.relative_to(out / name).as_posix() for p in (out / name).rglob("*") if p.is_file()}
    for path in sorted(present - set(rendered)):
        if not any(part in IGNORED for part in Path(path).parts):
            changes.append(Change(f"{name}/{path}", "orphan", _read(out / name / path), None))
    return changes


def _recorded(out: Path) -> dict:
    text = _read(out / MANIFEST)
    if text is None:
        return {}
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{out / MANIFEST} is not JSON: {error}", f"remove {out / MANIFEST} and generate again") from error


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, NotADirectoryError, IsADirectoryError) as error:
        raise UsageError(f"{path}: {error}", f"remove {path}") from error


def _remove_empty(folder: Path, out: Path) -> None:
    while folder != out and folder.is_dir():
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        if any(folder.iterdir()):
            return
        folder.rmdir()
        folder = folder.parent
