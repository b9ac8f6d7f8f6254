"""A compiled library that cannot be loaded: the message says what to do, and the reference computes on the CPU."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from rendered import import_package

TINY = (Path(__file__).resolve().parents[2] / "specs" / "tiny.yaml").read_text(encoding="utf-8")
WITHOUT_OPENMP = (
    "void GOMP_of_no_library(void);\nint merge_states_kernel_launch(void) { GOMP_of_no_library(); return 0; }\n"
)


@pytest.fixture
def package(tmp_path):
    return import_package(tmp_path / "packages", TINY.replace("name: tiny", f"name: u{tmp_path.name.lower()}"))


def install(package, content):
    """Puts a library.json of this package beside a kernels.so that `content` writes."""
    folder = package.library.HERE / "lib" / "c"
    folder.mkdir(parents=True)
    content(folder / "kernels.so")
    signatures = {"merge_states": {"tensors": [], "parameters": []}}
    record = {"package": "x", "target": "c", "source": package.library.source_hash(), "kernels": signatures}
    (folder / "library.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_no_openmp_runtime(package, tmp_path):
    (tmp_path / "x.c").write_text(WITHOUT_OPENMP)
    compile = lambda path: subprocess.run(
        ["gcc", "-shared", "-fPIC", str(tmp_path / "x.c"), "-o", str(path)], check=True
    )
    install(package, compile)
    with pytest.raises(package.library.LibraryError, match="kernels.so cannot be loaded .*GOMP_") as caught:
        package.library.load("cpu")
    assert "next: install GNU OpenMP" in str(caught.value) and "apt-get install libgomp1" in str(caught.value)
    state = torch.randn(2, 1, 4, 32), torch.randn(2, 1, 4)
    with pytest.warns(RuntimeWarning, match="install GNU OpenMP(.|\n)*slow torch reference"):
        out, lse = package.merge_states(*state)
    wanted = package.reference.merge_states(*state)
    assert torch.equal(out, wanted[0]) and torch.equal(lse, wanted[1])


def test_not_a_library(package):
    install(package, lambda path: path.write_bytes(b"not a library"))
    with pytest.raises(
        package.library.LibraryError, match="cannot be loaded .*; next: remove .*/lib/c, and it is compiled"
    ):
        package.library.load("cpu")
