"""verify sees wrong kernels, and shipped records are of the kernels that are shipped."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vashista_gen.bench import gate, verify

GENERATED = Path(__file__).resolve().parents[2] / "generated"
RECORDED = sorted(path.parent.name for path in GENERATED.glob("*/verified.json"))


def of(name):
    package = importlib.import_module(f"vashista_gen.generated.{name}")
    return package, importlib.import_module(f"{package.__name__}.library")


@pytest.mark.parametrize("name", RECORDED or [pytest.param("", marks=pytest.mark.skip(reason="no records"))])
def test_shipped_records_are_of_the_shipped_kernels(name):
    package, library = of(name)
    stale = verify.stale(package, library)
    assert not stale, f"{name}: kernels changed since {stale} were verified; next: vashista-gen verify specs/{name}.yaml --record"


def test_a_record_of_other_kernels_is_stale(tmp_path):
    package, library = of("tiny")
    there = SimpleNamespace(__file__=str(tmp_path / "__init__.py"))
    assert verify.stale(there, library) == ["none"]
    verify.write(tmp_path, "c", {"source": library.source_hash()})
    assert verify.stale(there, library) == []
    verify.write(tmp_path, "cuda-sm_90a", {"source": "0" * 64})
    assert verify.stale(there, library) == ["cuda-sm_90a"]
    assert set(json.loads((tmp_path / verify.RECORD).read_text())) == {"c", "cuda-sm_90a"}


def test_verify_passes_the_package_and_fails_a_wrong_one():
    package, library = of("tiny")
    seen = []
    found = verify.verify(package, torch.device("cpu"), torch.float32, seen.append)
    assert len(found) == len(seen) == len(verify.contexts(package.SPEC)) * len(verify.BATCHES)
    entry = verify.entry(package, library, torch.device("cpu"), found)
    assert 0 < entry["worst"]["sparse"] < gate.FLOAT32_TOLERANCE
    wrong = SimpleNamespace(**vars(package))
    wrong.decode = lambda q, *rest, **given: package.decode(1.01 * q, *rest, **given)
    with pytest.raises(gate.WrongResult, match="batch 1, 1 tokens: sparse: lse off"):
        verify.verify(wrong, torch.device("cpu"), torch.float32, seen.append)
