"""verify sees wrong kernels, and shipped records are of the kernels that are shipped."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rendered import import_package

from vashista_gen.bench import cases, contestants, gate, verify

GENERATED = Path(__file__).resolve().parents[2] / "generated"
RECORDED = sorted(path.parent.name for path in GENERATED.glob("*/verified.json"))


def of(name):
    package = importlib.import_module(f"vashista_gen.generated.{name}")
    return package, importlib.import_module(f"{package.__name__}.library")


@pytest.mark.parametrize("name", RECORDED or [pytest.param("", marks=pytest.mark.skip(reason="no records"))])
def test_shipped_records_are_of_the_shipped_kernels(name):
    package, library = of(name)
    stale = verify.stale(package, library)
    step = f"vashista-gen verify specs/{name}.yaml --record"
    assert not stale, f"{name}: kernels changed since {stale} were verified; next: {step}"


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


SKETCHED = "sketch: {bits: 8, transform: hadamard}\n"
PROMISES = {
    "rigorous": SKETCHED + "certificate: {kind: rigorous, every: 2, tolerance: 0.9}\n",
    "returning": SKETCHED + "certificate: {kind: rigorous, tolerance: 0.01}\nfallback: dense\n",
    "entropic": "attention: {solver: entropic_projection}\n",
    "frank_wolfe": "attention: {solver: frank_wolfe, iterations: 12}\n",
}


@pytest.fixture(scope="module")
def promising(tmp_path_factory):
    """name of PROMISES -> a package that its own reference computes, and a case of 130 tokens, twice what is routed."""
    folder, made = tmp_path_factory.mktemp("packages"), {}
    tiny = (GENERATED.parent / "specs" / "tiny.yaml").read_text(encoding="utf-8").replace("tokens: all", "tokens: 48")

    def get(name):
        if name not in made:
            made[name] = import_package(folder, tiny.replace("name: tiny", f"name: promise_{name}") + PROMISES[name])
            made[name].op._library = lambda x: None
        with torch.inference_mode():
            return made[name], cases.make(made[name], 130, 2, torch.device("cpu"), torch.float32, 1, False)

    return get


@pytest.mark.parametrize("name", PROMISES)
def test_promises_are_kept(promising, name):
    package, case = promising(name)
    with torch.inference_mode(), contestants.routed(package):
        checked = [*contestants.of_package(package, case), *contestants.promised(package, case)]
        errors = {one.name: verify._check(one, package, case) for one in checked}
    projects = name in ("entropic", "frank_wolfe")
    assert {"tokens", *(() if projects else ("certificate", "chosen"))} <= set(errors)
    assert errors["tokens"] == 0 and errors.get("certificate", 0) < 1e-4 and errors.get("chosen", 0) < 1e-5


def _changed(place, change):
    """decode with one of its results changed in place: (0,) out, (1,) lse or gap, (2, n) the certificate's n-th."""

    def way(op):
        def wrong(*args, **named):
            result = op(*args, **named)
            if place[0] < len(result):
                change(result[place[0]][place[1]] if place[1:] else result[place[0]])
            return result

        return wrong

    return way


BROKEN = [
    ("rigorous", "certificate", _changed((2, 3), lambda x: x.mul_(0.9)), "leakage is not that of log_omitted"),
    ("rigorous", "certificate", _changed((2, 4), lambda x: x.mul_(1e-3)), "further off than its error_bound"),
    ("rigorous", "certificate", _changed((2, 5), lambda x: x.logical_not_()), "certified"),
    ("rigorous", "certificate", _changed((2, 0), lambda x: x.fill_(float("nan"))), "NaN where heads are audited"),
    ("returning", "certificate", _changed((2, 5), lambda x: x.zero_()), "certified is not leakage"),
    ("entropic", "sparse", _changed((1,), lambda x: x.mul_(-1)), "claims nothing, or is negative"),
    ("entropic", "sparse", _changed((1,), lambda x: x.fill_(float("inf"))), "claims nothing"),
    ("entropic", "sparse", _changed((1,), lambda x: x.add_(3)), "the reference's"),
    ("entropic", "sparse", _changed((0,), lambda x: x.mul_(1.5)), "than the gaps allow"),
    ("frank_wolfe", "sparse", _changed((0,), lambda x: x.mul_(30)), "than the gaps allow"),
]


@pytest.mark.parametrize(("name", "which", "way", "words"), BROKEN)
def test_a_broken_promise_is_seen(promising, name, which, way, words):
    package, case = promising(name)
    wrong = SimpleNamespace(**vars(package))
    wrong.decode = way(package.decode)
    with torch.inference_mode(), contestants.routed(package):
        checked = [*contestants.of_package(wrong, case), *contestants.promised(wrong, case)]
        (one,) = (one for one in checked if one.name == which)
        with pytest.raises(gate.WrongResult, match=words):
            gate.check(one, wrong, case)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, h, n: (t.flip(-1), h, n), "not ascending"),
        (lambda t, h, n: (t, h, n - 1), "counts do not fit"),
        (lambda t, h, n: (t + 1000 * (t == 129), h, n), "beyond the sequence"),
        (lambda t, h, n: (t, h * 0, n), "no head keeps"),
        (lambda t, h, n: (torch.arange(t.shape[-1]).int().expand_as(t), h, n), "of the reference's tokens"),
    ],
)
def test_a_wrong_list_is_seen(promising, change, words):
    package, case = promising("rigorous")
    wrong = SimpleNamespace(**vars(package))
    wrong.select_tokens = lambda *args: change(*package.select_tokens(*args))
    with torch.inference_mode(), pytest.raises(gate.WrongResult, match=words):
        (one,) = (one for one in contestants.promised(wrong, case) if one.name == "tokens")
        gate.check(one, wrong, case)


def test_two_levels(tmp_path):
    """Summaries of super-pages are renewed where one is full, and only there; contexts go beyond the beam."""
    text = (GENERATED.parent / "specs" / "tiny.yaml").read_text(encoding="utf-8").replace("name: tiny", "name: levels")
    package = import_package(tmp_path, text.replace("pages: 4", "pages: 4, levels: 2, super_pages: 4, beam: 3"))
    package.op._library = lambda x: None
    contexts = verify.contexts(package.SPEC)
    assert {256, 273} <= set(contexts)  # (3 + 1) * 4 * 16, full, and with a page and a token more
    update = package.update_summaries
    lost = SimpleNamespace(**vars(package))

    def no_supers(summaries, *args, **named):
        kept = summaries.super_codes.clone()
        update(summaries, *args, **named)
        summaries.super_codes.copy_(kept)

    lost.update_summaries = no_supers
    with torch.inference_mode():
        for context in (256, 273):
            for one in (package, lost):
                case = cases.make(package, context, 2, torch.device("cpu"), torch.float32, 1, False)
                (contestant,) = (c for c in contestants.of_package(one, case) if c.name == "update")
                if one is lost and context == 256:
                    with pytest.raises(gate.WrongResult, match="differ from those made in bulk"):
                        gate.check(contestant, one, case)
                else:
                    assert gate.check(contestant, one, case) == 0
