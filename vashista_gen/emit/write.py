"""{path: text} -> disk: write, check or diff, all through one comparison."""

from __future__ import annotations

import contextlib
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
    """One file that differs. kind: missing, stale (spec or template changed), edited (by hand), orphan.

    by_hand  what is on disk is not what MANIFEST.json records: edited, or an orphan that was not generated
    """

    path: str
    kind: str
    old: str | None
    new: str | None
    by_hand: bool = False

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
        for folder in sorted(p for p in out.glob("*/") if p.name not in entries):
            if folder.name in recorded or (folder / "constants.py").is_file():
                changes += _compare_package(out, folder.name, {}, recorded.get(folder.name, {}).get("files", {}))
    for path, text in ((MANIFEST, manifest_text(entries)), ("__init__.py", _INIT)):
        old = _read(out / path)
        if old != text:
            changes.append(Change(path, "missing" if old is None else "stale", old, text))
    return changes


_INIT = '"""Generated packages, one a spec; see MANIFEST.json. Refresh with: vashista-gen generate."""\n'


def apply(changes: list[Change], out: Path) -> None:
    """Writes the changes; files that are the same are not touched. All of them are made, or none.

    Every new text is written beside its place first, and only then are they all moved in, the manifest last; an error
    or an interrupt on the way moves the old ones back. Raises UsageError when the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".generate-", dir=out))
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}", "choose another folder with --out") from error
    try:
        _move_in(changes, out, scratch)
    except OSError as error:
        message = f"cannot write {error.filename2 or error.filename}: {error.strerror}"
        raise UsageError(message, "mend that, then run it again; generate --check says what is on disk") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move_in(changes: list[Change], out: Path, scratch: Path) -> None:
    for i, change in enumerate(changes):
        if change.new is not None:
            (scratch / f"{i}.new").write_bytes(change.new.encode())
        if change.old is not None:
            shutil.copy2(out / change.path, scratch / f"{i}.old")
    begun = []
    try:
        for i, change in sorted(enumerate(changes), key=lambda item: item[1].path == MANIFEST):
            target = out / change.path
            begun.append((i, change))
            if change.new is None:
                target.unlink()
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(scratch / f"{i}.new", target)
    except BaseException:
        for i, change in begun:
            with contextlib.suppress(OSError):  # put back all that can be
                if change.old is not None:
                    os.replace(scratch / f"{i}.old", out / change.path)
                else:
                    (out / change.path).unlink(missing_ok=True)
                    _remove_empty((out / change.path).parent, out)
        raise
    for folder in {(out / c.path).parent for c in changes if c.new is None}:
        _remove_empty(folder, out)


def _compare_package(out: Path, name: str, rendered: dict[str, str], recorded: dict[str, str]) -> list[Change]:
    changes = []
    for path, text in rendered.items():
        old = _read(out / name / path)
        if old == text:
            continue
        kind = "missing" if old is None else "stale" if _sha256(old) == recorded.get(path) else "edited"
        changes.append(Change(f"{name}/{path}", kind, old, text, kind == "edited"))
    present = {p.relative_to(out / name).as_posix() for p in (out / name).rglob("*") if p.is_file()}
    for path in sorted(present - set(rendered)):
        if not any(part in IGNORED for part in Path(path).parts):
            old = _read(out / name / path)
            changes.append(Change(f"{name}/{path}", "orphan", old, None, _sha256(old) != recorded.get(path)))
    return changes


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _recorded(out: Path) -> dict:
    text = _read(out / MANIFEST)
    if text is None:
        return {}
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"{out / MANIFEST} is not JSON: {error}", f"remove {out / MANIFEST} and generate again"
        ) from error


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
