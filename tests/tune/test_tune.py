"""Which values are tried and taken, by made-up times; the gate before them; the file and what a package makes of it."""

import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vashista_gen.bench import cases, timing
from vashista_gen.errors import DriftError, UsageError
from vashista_gen.generated import tiny
from vashista_gen.spec import load
from vashista_gen.tune import run, search
from vashista_gen.tune.search import Knob

ROOT = Path(__file__).resolve().parents[2]
TUNED = sorted(path.stem for path in (ROOT / "specs" / "tuning").glob("*.json"))
KNOB = Knob("waves", (1, 2, 4, 8), ("dense",))


def rows(*series, wrong=()):
    """Times in seconds of the values 1, 2, 4, 8, a row for each case."""
    return [
        {"seconds": {v: t for v, t in zip(KNOB.values, times, strict=True) if v not in wrong}, "wrong": {}}
        for times in series
    ]


@pytest.mark.parametrize(
    ("found", "present", "value"),
    [
        (rows((4, 3, 2, 5)), 1, 4),
        (rows((4, 3, 2, 5)), 4, 4),
        (rows((4, 1, 4, 4), (4, 9, 2, 4)), 1, 4),  # geometric means 4, 3, 2.8, 4
        (rows((2, 2.01, 1.99, 2)), 2, 2),  # less than a hundredth is not a gain
        (rows((4, 3, 2, 5), wrong=(4,)), 1, 2),
        (rows((4, 3, 2, 5)), 3, 4),  # the value in force was not tried: the nearest is where it starts
        (rows((2, 2, 2, 2)), 3, 2),
        (rows((4, 3, 2, 5), wrong=(1, 2, 4, 8)), 1, 1),
        ([], 4, 4),
    ],
)
def test_the_least_geometric_mean_is_taken(found, present, value):
    taken, gain = search.best(KNOB, found, present)
    assert taken == value and (gain > search.LEAST_GAIN or gain == 0) and (gain == 0 or taken != present)


@pytest.mark.parametrize(
    ("ratios", "tokens"),
    [
        ({}, 0),
        ({1024: 2.0}, 0),
        ({1024: 0.5}, 1024),
        ({1024: 0.5, 4096: 2.0}, 2048),
        ({1024: 2, 2048: 0.5, 8192: 2}, 4096),
    ],
)
def test_dense_up_to(ratios, tokens):
    found = [{"batch": 1, "context": n, "dense": ratio, "sparse": 1.0} for n, ratio in ratios.items()]
    assert search.dense_up_to(found) == tokens


def test_a_sweep_ends_where_sparse_is_clearly_faster_or_memory_is_out():
    make = lambda context: cases.make(tiny, context, 1, torch.device("cpu"), torch.float32, 1, False)
    ratio = {100: 0.5, 200: 3.0, 300: 1.2, 400: 3.0, 500: 3.0}
    measured = []

    def measure(contestants, case):
        measured.append((case.context, [one.name for one in contestants], tiny.op.tuning.of(torch.device("cpu"))))
        time = {"dense": ratio[case.context], "sparse": 1.0}
        return {one.name: timing.Timing(time[one.name], 0, 1) for one in contestants}

    with torch.inference_mode():
        found = search.sweep(tiny, (100, 200, 300, 400, 500, 600), make, {"split_tokens": 64}, measure)
        assert [one["context"] for one in found] == [100, 200, 300, 400, 500]
        assert {one[2].split_tokens for one in measured} == {64} and {one[2].dense_up_to for one in measured} == {()}
        short = search.sweep(tiny, (100, 200), lambda n: make(n) if n < 200 else None, {}, measure)
    assert [one["context"] for one in short] == [100]


def test_a_value_with_a_wrong_result_has_no_time(monkeypatch):
    decode = tiny.decode_dense

    def wrong(*args, **named):
        out, lse = decode(*args, **named)
        if tiny.op.tuning.of(torch.device("cpu")).split_tokens == 128:
            out[-1, -1] *= 1.01
        return out, lse

    monkeypatch.setattr(tiny, "decode_dense", wrong)
    seen = []

    def measure(contestants, case):
        seen.extend(one.label for one in contestants)
        return {one.name: timing.Timing(float(one.name), 0, 1) for one in contestants}

    with torch.inference_mode():
        case = cases.make(tiny, 1024, 1, torch.device("cpu"), torch.float32, 1, False)
        knob = Knob("split_tokens", (64, 128, 256), ("dense",))
        (row,) = search.try_values([case], knob, search.of_launches(tiny, knob, {}), measure)
    assert row["seconds"] == {64: 64.0, 256: 256.0} and seen == ["split_tokens 64", "split_tokens 256"]
    assert "dense: output off" in row["wrong"][128]


@pytest.fixture
def times(monkeypatch):
    """Made-up times: 256 tokens a split are best, the dense op is faster below 700 tokens at batch 1, 350 at 2."""

    def measure(contestants, case, budget):
        for one in contestants:
            one.run(0, case.inputs[0])
        made = {"dense": case.context * case.batch / 700, "sparse": 1.0}
        value = lambda one: made[one.name] if one.name in made else 1 + abs(int(one.name) - 256) / 1000
        return {one.name: timing.Timing(value(one), 0, 1) for one in contestants}

    monkeypatch.setattr(timing, "measure", measure)


@pytest.fixture
def here(tmp_path):
    return Path(shutil.copy(ROOT / "specs" / "tiny.yaml", tmp_path))


def tune(spec):
    shapes, contexts = ((1, 600), (2, 300)), (175, 350, 1400)
    return run.main(spec, device="cpu", shapes=shapes, batches=(1, 2), contexts=contexts, kernels=False)


def test_a_run_writes_what_a_package_looks_up(times, here, capsys):
    path = tune(here)
    assert path == here.parent / "tuning" / "tiny.json"
    device = tiny.op.tuning.name_of(torch.device("cpu"))
    made = json.loads(path.read_text())[device]
    # between 350 and 1400 tokens log(ratio) is linear in log(context): 700, and for batch 2 the measured 350 exactly
    assert made["knobs"] == {"split_tokens": 256, "dense_up_to": [[1, 700], [2, 350]]}
    assert made["source"] == tiny.op.library.source_hash() and made["versions"]["torch"] == torch.__version__
    assert [row["microseconds"]["256"] for row in made["times"]] == [1e6] * 4
    assert {(row["batch"], row["context"]) for row in made["break_even"]} == {
        (b, n) for b in (1, 2) for n in (175, 350, 1400)
    }
    assert load(here).tuning == {device: {key: made[key] for key in ("source", "knobs")}}
    said = capsys.readouterr().out
    assert "split_tokens           512 ->   256  20.4% faster" in said
    assert "batch   1: dense up to    700 tokens" in said and "next: vashista-gen generate" in said


def test_other_devices_keep_their_entries(times, here, capsys):
    path = here.parent / "tuning" / "tiny.json"
    path.parent.mkdir()
    other = {"source": "0", "knobs": {"waves": 2}}
    path.write_text(json.dumps({"cuda-sm_90a, another": other}))
    tune(here)
    found = json.loads(path.read_text())
    assert len(found) == 2 and found["cuda-sm_90a, another"] == other
    assert "tuned for other kernels than these: cuda-sm_90a, another; next" in capsys.readouterr().out
    found["cuda-sm_90a, another"]["source"] = tiny.op.library.source_hash()
    path.write_text(json.dumps(found))
    tune(here)
    assert "tuned for other kernels" not in capsys.readouterr().out


def test_a_wrong_kernel_ends_the_run(times, here, monkeypatch):
    monkeypatch.setattr(tiny, "decode", lambda *x, out, lse, **more: (out, lse))
    with pytest.raises(DriftError, match="sparse: output off"):
        tune(here)
    assert not (here.parent / "tuning").exists()


def test_a_projection_is_refused(here):
    text = here.read_text().replace("tokens: all", "tokens: 48") + "attention: {solver: frank_wolfe}\n"
    here.write_text(text)
    with pytest.raises(UsageError, match="frank_wolfe"):
        tune(here)


def test_every_knob_is_one_that_packages_have():
    from vashista_gen.spec.tuning import MOST

    fields = set(tiny.op.tuning.Knobs._fields) - {"dense_up_to"}
    assert {knob.name for knobs in search.KNOBS.values() for knob in knobs} <= fields == set(MOST)
    assert all(max(knob.values) <= MOST[knob.name] for knobs in search.KNOBS.values() for knob in knobs)


@pytest.mark.parametrize("name", TUNED or [pytest.param("", marks=pytest.mark.skip(reason="nothing is tuned"))])
def test_shipped_tunings_are_of_the_shipped_kernels(name):
    library = importlib.import_module(f"vashista_gen.generated.{name}.library")
    entries = load(ROOT / "specs" / f"{name}.yaml").tuning
    stale = [device for device, entry in entries.items() if entry["source"] != library.source_hash()]
    step = f"vashista-gen tune specs/{name}.yaml there"
    assert not stale, f"{name}: kernels changed since {stale} were tuned; next: {step}"


def test_knobs_are_changed_for_a_block_and_nest():
    tuning, cpu = tiny.op.tuning, torch.device("cpu")
    default = tuning.of(cpu)
    with tuning.changed(split_tokens=1), tuning.changed(max_splits=2):
        assert tuning.of(cpu) == default._replace(split_tokens=1, max_splits=2)
    assert tuning.of(cpu) == default
    again = tuning.changed(max_splits=3)
    for _ in range(2):
        with again, pytest.raises(KeyError), again:
            assert tuning.of(cpu) == default._replace(max_splits=3)
            raise KeyError
        assert tuning.of(cpu) == default


def test_splits_follow_the_knobs(monkeypatch):
    """On a GPU: as many blocks as it holds, `waves` times as many for long splits; on a CPU tokens alone."""
    op = tiny.op
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(op.tuning, "_of", lambda kind, index: op.tuning.DEFAULTS[kind])
    q = lambda kind, batch: SimpleNamespace(device=torch.device(kind), shape=(batch, 4, 32))
    heads = tiny.SPEC["model"]["num_kv_heads"]
    assert op._splits(q("cpu", 1), 5000) == 9 and op._splits(q("cpu", 1), 10**6) == 16
    with op.tuning.changed(blocks_per_sm=2, dense_blocks_per_sm=4, waves=3, split_tokens=1000):
        for batch in (1, 8):
            held = 132 // (batch * heads)
            assert op._splits(q("cuda", batch), 2**20) == min(3 * 2 * 132 // (batch * heads), 2**20 // 1000)
            assert op._splits(q("cuda", batch), 2**14) == max(2 * 132 // (batch * heads), 16)
            assert op._splits(q("cuda", batch), 2**14, dense=True) == 4 * 132 // (batch * heads) >= 4 * held
