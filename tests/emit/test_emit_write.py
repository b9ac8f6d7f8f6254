"""compare and apply: the kinds of drift, and writes that are whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from vashista_gen import emit, spec
from vashista_gen.errors import UsageError
from vashista_gen.plan import Plan, make_plan

ROOT = Path(__file__).resolve().parents[2]
TINY = (ROOT / "specs" / "tiny.yaml").read_text(encoding="utf-8")


def plan_of(text: str = TINY) -> Plan:
    return make_plan(spec.loads(text, "specs/tiny.yaml"))


def other(name: str) -> Plan:
    return make_plan(spec.loads(TINY.replace("name: tiny", f"name: {name}"), f"specs/{name}.yaml"))


def kinds(changes: list[emit.Change]) -> dict[str, str]:
    return {change.path: change.kind for change in changes}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package tiny, as generated; tests work on a copy."""
    out = tmp_path_factory.mktemp("written") / "generated"
    emit.apply(emit.compare([plan_of()], out, whole=True), out)
    return out


@pytest.fixture
def out(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "generated")
    return tmp_path / "generated"


def test_a_new_package_is_missing_then_current(tmp_path: Path) -> None:
    changes = emit.compare([plan_of()], tmp_path, whole=True)
    assert {change.kind for change in changes} == {"missing"}
    assert not list(tmp_path.iterdir())  # comparing writes nothing
    emit.apply(changes, tmp_path)
    assert emit.compare([plan_of()], tmp_path, whole=True) == []
    assert set(snapshot(tmp_path)) == {change.path for change in changes}


def test_missing(out: Path) -> None:
    (out / "tiny" / "op.py").unlink()
    assert kinds(emit.compare([plan_of()], out, whole=True)) == {"tiny/op.py": "missing"}


def test_stale_when_the_spec_changed(out: Path) -> None:
    changes = emit.compare([plan_of(TINY.replace("pages: 4", "pages: 6"))], out, whole=True)
    assert {change.kind for change in changes} == {"stale"}
    assert not any(change.by_hand for change in changes)
    assert any("+TOP_PAGES = 6\n" in change.diff() for change in changes)


def test_edited_by_hand(out: Path) -> None:
    path = out / "tiny" / "op.py"
    path.write_text(path.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    (change,) = emit.compare([plan_of()], out, whole=True)
    assert (change.path, change.kind, change.by_hand) == ("tiny/op.py", "edited", True)
    assert "-# mine\n" in change.diff()


def test_orphan_file(out: Path) -> None:
    (out / "tiny" / "kernels" / "old.py").write_text("x = 1\n", encoding="utf-8")
    (change,) = emit.compare([plan_of()], out, whole=True)
    assert (change.path, change.kind, change.by_hand) == ("tiny/kernels/old.py", "orphan", True)


def test_orphan_package_only_when_the_plans_are_all(out: Path) -> None:
    emit.apply(emit.compare([other("second")], out, whole=False), out)
    assert emit.compare([plan_of(), other("second")], out, whole=True) == []
    assert emit.compare([plan_of()], out, whole=False) == []
    changes = emit.compare([plan_of()], out, whole=True)
    orphans = [change for change in changes if change.kind == "orphan"]
    assert orphans and all(change.path.startswith("second/") and not change.by_hand for change in orphans)
    emit.apply(changes, out)
    assert not (out / "second").exists()
    assert emit.compare([plan_of()], out, whole=True) == []


def test_what_is_left_of_a_recorded_package_is_an_orphan(out: Path) -> None:
    emit.apply(emit.compare([other("second")], out, whole=False), out)
    (out / "second" / "constants.py").unlink()
    changes = kinds(emit.compare([plan_of()], out, whole=True))
    assert changes["second/op.py"] == "orphan"


CERTIFIED = """sketch: {bits: 4}
candidates: {tokens: 48}
certificate: {kind: rigorous}
fallback: dense
"""


def certified(text: str = TINY) -> Plan:
    """The package tiny with sketches, a list of tokens and certificates."""
    lines = [line for line in text.splitlines() if not line.startswith(("candidates", "certificate", "fallback"))]
    return plan_of("\n".join(lines) + "\n" + CERTIFIED)


def test_kernels_that_a_spec_gains_and_drops(out: Path) -> None:
    gained = {f"tiny/kernels/{name}.py" for name in ("sketch", "tokens", "warp_tokens", "certify")}
    changes = emit.compare([certified()], out, whole=True)
    assert {change.path for change in changes if change.kind == "missing"} == gained
    emit.apply(changes, out)
    assert emit.compare([certified()], out, whole=True) == []
    changes = emit.compare([plan_of()], out, whole=True)
    orphans = {change.path for change in changes if change.kind == "orphan"}
    assert orphans == gained and not any(change.by_hand for change in changes)
    emit.apply(changes, out)
    assert not any((out / path).exists() for path in gained)
    assert emit.compare([plan_of()], out, whole=True) == []


def test_a_calibration_that_changed_is_stale_and_one_that_is_dropped_an_orphan(out: Path, tmp_path: Path) -> None:
    text = TINY.replace("candidates:", "sketch: {bits: 4, balance: file.json}\ncandidates:")

    def balanced(value: float) -> Plan:
        layer = {"balance": [[value] * 16] * 2}
        (tmp_path / "file.json").write_text(json.dumps({"layers": [layer]}), encoding="utf-8")
        return make_plan(spec.loads(text, "specs/tiny.yaml", tmp_path))

    emit.apply(emit.compare([balanced(1.0)], out, whole=True), out)
    assert (out / "tiny" / "calibration.json").is_file()
    assert emit.compare([balanced(1.0)], out, whole=True) == []
    assert kinds(emit.compare([balanced(2.0)], out, whole=True))["tiny/calibration.json"] == "stale"
    changes = emit.compare([plan_of()], out, whole=True)
    assert kinds(changes)["tiny/calibration.json"] == "orphan"
    emit.apply(changes, out)
    assert not (out / "tiny" / "calibration.json").exists()


def test_libraries_and_records_beside_the_sources_are_no_drift(out: Path) -> None:
    for path in ("tiny/lib/c/kernels.so", "tiny/__pycache__/op.pyc", "tiny/verified.json"):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(b"\xff\x00")
    assert emit.compare([plan_of()], out, whole=True) == []


@pytest.mark.parametrize("drift", ["missing", "stale", "edited", "orphan"])
def test_applying_mends_every_kind(out: Path, drift: str) -> None:
    before = snapshot(out)
    if drift == "missing":
        (out / "tiny" / "op.py").unlink()
    elif drift == "orphan":
        (out / "tiny" / "old.py").write_text("x = 1\n", encoding="utf-8")
    elif drift == "edited":
        (out / "tiny" / "op.py").write_text("x = 1\n", encoding="utf-8")
    else:
        stale = plan_of(TINY.replace("pages: 4", "pages: 6"))
        emit.apply(emit.compare([stale], out, whole=True), out)
    changes = emit.compare([plan_of()], out, whole=True)
    assert drift in {change.kind for change in changes}
    emit.apply(changes, out)
    assert snapshot(out) == before


def test_files_that_are_the_same_are_not_touched(out: Path) -> None:
    (out / "tiny" / "op.py").unlink()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    emit.apply(emit.compare([plan_of()], out, whole=True), out)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device", "x")], ids=["^C", "full"]
)
@pytest.mark.parametrize("at", [1, 2, 7])
def test_an_interrupted_write_changes_nothing(
    out: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, at: int
) -> None:
    (out / "tiny" / "op.py").unlink()
    (out / "tiny" / "old.py").write_text("x = 1\n", encoding="utf-8")
    (out / "tiny" / "kernels" / "merge.py").unlink()
    before = snapshot(out)
    changes = emit.compare([plan_of(TINY.replace("pages: 4", "pages: 6")), other("second")], out, whole=True)
    calls = 0

    def replace(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UsageError):
        emit.apply(changes, out)
    assert snapshot(out) == before
    assert not (out / "second").exists()
    assert sorted(p.name for p in out.iterdir()) == ["MANIFEST.json", "__init__.py", "tiny"]  # no scratch folder


def test_a_first_write_that_fails_leaves_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = emit.compare([plan_of()], tmp_path, whole=True)

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UsageError, match="Permission denied"):
        emit.apply(changes, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_manifest_that_is_no_json_is_named(out: Path) -> None:
    (out / "MANIFEST.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="is not JSON") as caught:
        emit.compare([plan_of()], out, whole=True)
    assert "remove" in caught.value.hint


def test_every_package_is_installed():
    """pyproject.toml names each folder of modules: one that it does not name is missing from a wheel."""
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11

    root = Path(__file__).resolve().parents[2]
    named = set(tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(path.parent.relative_to(root).parts) for path in (root / "vashista_gen").rglob("__init__.py")}
    there = {name for name in there if ".generated." not in name and ".templates" not in name}
    assert there <= named
