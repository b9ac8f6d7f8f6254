"""The demo's line about CUDA, on a package that only pretends; that the real kernels lower is tested elsewhere."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vashista_gen.demo import gpu


def fake(monkeypatch, *, nvcc, broken=()):
    """A package of three kernels for GPUs and one that they lack; some cannot be lowered."""

    def cuda_source(kernel, target):
        print("chatter")
        if kernel in broken:
            raise RuntimeError(f"no {kernel} for {target}\nand a long trace")
        return "__global__"

    def build(target, directory):
        Path(directory).mkdir()
        names = kernels_of(target, library.KERNELS)
        for kernel in names:
            cuda_source(kernel, target)
        (Path(directory) / "library.json").write_text(json.dumps({"kernels": dict.fromkeys(names)}))
        return Path(directory)

    def kernels_of(target, names):
        return [name for name in names if name != "zero" or not target.startswith("cuda")]

    package, library, kernels, lower = (
        ModuleType(name) for name in ("fake", "fake.library", "fake.kernels", "fake.kernels.lower")
    )
    library.KERNELS, library.build = ("zero", "one", "two", "three"), build
    lower.cuda_source, lower.kernels_of = cuda_source, kernels_of
    for module in (package, library, kernels, lower, ModuleType("tilelang")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    library.cuda_compiler = lambda: "/usr/bin/nvcc" if nvcc else None
    return package


@pytest.mark.parametrize(
    ("nvcc", "broken", "line"),
    [
        (False, (), "kernels lowered to CUDA: 3 of 3 for cuda-sm_90a (no nvcc found: source only)"),
        (True, (), "kernels lowered to CUDA: 3 of 3 for cuda-sm_90a (machine code compiled by nvcc)"),
        (
            False,
            ("one", "three"),
            "kernels lowered to CUDA: 1 of 3 for cuda-sm_90a (no nvcc found: source only); "
            "one: RuntimeError: no one for cuda-sm_90a; three: RuntimeError: no three for cuda-sm_90a",
        ),
        (
            True,
            ("two",),
            "kernels lowered to CUDA: 0 of 3 for cuda-sm_90a (machine code compiled by nvcc); "
            "RuntimeError: no two for cuda-sm_90a",
        ),
    ],
)
def test_the_line(monkeypatch, capsys, nvcc, broken, line):
    assert gpu.lower(fake(monkeypatch, nvcc=nvcc, broken=broken)) == line
    assert capsys.readouterr().out == ""


def test_without_tilelang(monkeypatch):
    package = fake(monkeypatch, nvcc=False)
    monkeypatch.setitem(sys.modules, "tilelang", None)
    assert gpu.lower(package).endswith("next: pip install tilelang==0.1.15")
