"""The C kernels never read or write out of bounds, whatever block tables, lengths and page lists hold: AddressSanitizer
watches while hostile.py calls every op with metadata that no check has seen."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rendered import write_package

TESTS = Path(__file__).resolve().parents[1]
# key sketches that score, a share of the mass, every kernel of certificates and retries, pages that are kept
SKETCHED = """name: sketched
model: {num_q_heads: 4, num_kv_heads: 2, head_dim: 32, dtype: float32}
cache: {page_size: 16}
routing: {summary: sketch, pages: 4, refresh: 4}
sketch: {bits: 4, transform: hadamard}
candidates: {tokens: 50, mass: 0.98, min_tokens: 8}
certificate: {kind: rigorous, tolerance: 0.1}
fallback: expand
targets: [c]
"""
# NHD, sub-pages in 4 bits, every token of pages that may be kept from other steps; HND, box in 8 bits, a token budget for each
# head, soft cap
SPECS = {
    "tiny": (TESTS.parent / "specs" / "tiny.yaml").read_text(encoding="utf-8").replace("pages: 4", "pages: 4, refresh: 4"),
    "hnd_box8": (TESTS / "golden" / "hnd_box8.yaml").read_text(encoding="utf-8"),
    "sketched": SKETCHED,
}
FLAGS = "-fsanitize=address -g -O1"
BUILD = """
import importlib, sys
from pathlib import Path
folder, name, libraries = sys.argv[1:]
sys.path.insert(0, folder)
importlib.import_module(name + ".library").build("c", Path(libraries) / name / "c")
"""
DRAWINGS = "80"


def runtime(name: str) -> str | None:
    """Path of one of gcc's libraries, None where gcc or the library is not there."""
    gcc = shutil.which("gcc")
    if not gcc:
        return None
    found = subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return found if os.path.isabs(found) else None


LIBASAN = runtime("libasan.so")
pytestmark = [
    pytest.mark.skipif(LIBASAN is None, reason="needs gcc with libasan"),
    pytest.mark.xdist_group("sanitized"),
]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """(package, *words) -> the finished process of hostile.py on a package whose library the sanitizer watches."""
    folder = tmp_path_factory.mktemp("sanitized")
    flags = {**os.environ, "CC": "gcc", "VASHISTA_GEN_CFLAGS": FLAGS, "OMP_NUM_THREADS": "1"}
    preloaded = {
        **flags,
        "VASHISTA_GEN_LIBRARIES": str(folder / "libraries"),
        "LD_PRELOAD": f"{LIBASAN} {runtime('libstdc++.so.6')}",  # the latter for exceptions inside torch
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=99",
    }

    @functools.cache
    def built(case):
        name = write_package(folder, SPECS[case])
        build = [sys.executable, "-c", BUILD, str(folder), name, str(folder / "libraries")]
        subprocess.run(build, env=flags, check=True)
        return name

    def run(case, *words):
        command = [sys.executable, str(TESTS / "fuzz" / "hostile.py"), str(folder), built(case), *words]
        return subprocess.run(command, env=preloaded, capture_output=True, text=True)

    return run


def test_the_sanitizer_watches(watched):
    done = watched("tiny", "canary")
    assert done.returncode == 99, done.stderr[-3000:]
    assert "heap-buffer-overflow" in done.stderr and "attend_dense_kernel" in done.stderr


@pytest.mark.parametrize("case", SPECS)
def test_hostile_metadata(watched, case):
    done = watched(case, "0", DRAWINGS)
    assert done.returncode == 0, done.stderr[:3000]
    assert f" outlived {DRAWINGS} drawings: " in done.stdout
