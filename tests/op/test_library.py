"""Packages on their own: no vashista_gen, no compiler, two copies at once, libraries compiled once and never stale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vashista_gen import spec

from .conftest import SPECS, write_package

pytestmark = pytest.mark.xdist_group("tiny")  # the group that has the tiny library compiled

PRELUDE = """
import sys, warnings
{hide}
sys.modules["vashista_gen"] = None  # an import of it fails
sys.path.insert(0, {folder!r})
warnings.simplefilter("always")
import torch
torch.manual_seed(0)

def decode(package):
    q, k, v = torch.randn(2, 4, 32), torch.randn(9, 16, 2, 32), torch.randn(9, 16, 2, 32)
    table, lens = torch.arange(8, dtype=torch.int32).view(2, 4), torch.tensor([50, 64], dtype=torch.int32)
    summaries = package.summarize_pages(k, table, lens)
    found = *package.decode(q, k, v, table, lens, summaries), *package.decode_dense(q, k, v, table, lens)
    wanted = package.reference.decode(q, k, v, table, lens, summaries)
    assert all((x - y).abs().max() < 1e-5 for x, y in zip(found, wanted + wanted))
    merged = package.merge_states(torch.stack([found[0], found[2]]), torch.stack([found[1], found[3]]))
    return torch.cat([merged[0].flatten(), merged[1].flatten(), found[0].flatten()])

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
"""
POSTLUDE = """
print("WARNINGS", len([w for w in caught if w.category is RuntimeWarning]), len(caught))
for w in caught: print("WARNING", w.category.__name__, str(w.message).replace(chr(10), " "))
"""


def run(folder: Path, code: str, hide: str = "", **environment: str) -> str:
    """Output of a Python of its own that runs `code` with `folder` on its path and no vashista_gen."""
    text = PRELUDE.format(folder=str(folder), hide=hide) + textwrap.indent(textwrap.dedent(code), "    ") + POSTLUDE
    done = subprocess.run(
        [sys.executable, "-c", text], env={**os.environ, **environment}, capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """A folder with the tiny package in it."""
    write_package(tmp_path / "packages", spec.load(SPECS["tiny"]))
    return tmp_path / "packages"


def test_a_copied_package_needs_torch_alone(tiny, folder):
    """With its library compiled, a package runs without vashista_gen, TileLang and compiler, and says nothing."""
    tiny.package.merge_states(*[x[None] for x in _state()])  # compiles the library, if that is still to do
    out = run(
        folder, "import tiny; decode(tiny); assert 'tilelang' not in {m for m in sys.modules if sys.modules[m]}",
        hide="sys.modules['tilelang'] = None", CC="/nonexistent",
    )  # fmt: skip
    assert out == "WARNINGS 0 0\n"


def _state():
    import torch

    return torch.zeros(1, 4, 32), torch.zeros(1, 4)


@pytest.mark.parametrize(
    ("hide", "compiler", "step"),
    [
        ("", "/nonexistent", "no C compiler; next: install gcc, or set CC to a C compiler"),
        ("sys.modules['tilelang'] = None", "gcc", "next: pip install tilelang==0.1.15"),
    ],
    ids=["no-compiler", "no-tilelang"],
)
def test_without_a_compiler_the_reference_computes(folder, tmp_path, hide, compiler, step):
    """The result is the reference's, and one warning says so and what to do next."""
    out = run(
        folder, "import tiny; decode(tiny); decode(tiny)", hide, CC=compiler, VASHISTA_GEN_CACHE=str(tmp_path / "empty")
    )
    head, warning = out.splitlines()
    assert head == "WARNINGS 1 1"
    assert warning.startswith("WARNING RuntimeWarning tiny: ")
    assert step in warning and warning.endswith("Until then the slow torch reference computes on the CPU.")


def test_two_copies_coexist(tiny, folder, tmp_path):
    """The same package imported under two names: two sets of ops, one library, the same result."""
    for name in ("first", "second"):
        shutil.copytree(folder, tmp_path / "both" / name)
        (tmp_path / "both" / name / "__init__.py").touch()
    code = """
        from first import tiny as one
        from second import tiny as two
        from first.tiny import op as first_op
        from second.tiny import op as second_op
        assert first_op.NAMESPACE != second_op.NAMESPACE
        torch.manual_seed(1); x = decode(one)
        torch.manual_seed(1); y = decode(two)
        assert torch.equal(x, y)
    """
    assert run(tmp_path / "both", code) == "WARNINGS 0 0\n"


def test_a_library_is_compiled_once(folder, tmp_path):
    """The second process finds what the first one compiled: it runs no compiler."""
    log, compiler = tmp_path / "log", tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\necho run >> {log}\nexec {os.environ.get("CC", "gcc")} "$@"\n')
    compiler.chmod(0o755)
    environment = {"CC": str(compiler), "VASHISTA_GEN_CACHE": str(tmp_path / "cache")}
    run(folder, "import tiny; decode(tiny)", **environment)
    runs = log.read_text()
    assert runs
    run(folder, "import tiny; decode(tiny)", **environment)
    assert log.read_text() == runs


def test_a_library_of_other_sources_is_not_used(tiny, folder):
    """It is passed over with a warning that names it; one without a record, half written, is passed over silently."""
    tiny.package.merge_states(*[x[None] for x in _state()])
    stale = folder / "tiny" / "lib" / "c"
    stale.mkdir(parents=True)
    (stale / "kernels.so").write_bytes(b"not a library")
    assert run(folder, "import tiny; decode(tiny)") == "WARNINGS 0 0\n"
    record = {"package": "tiny", "target": "c", "source": "0" * 64, "kernels": {}}
    (stale / "library.json").write_text(json.dumps(record))
    head, warning = run(folder, "import tiny; decode(tiny)").splitlines()
    assert head == "WARNINGS 0 1"
    assert str(stale) in warning and "from other sources and is not used; next: remove it" in warning
