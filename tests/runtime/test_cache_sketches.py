"""PagedCache of packages with sketches and certificates: centres of the first fill, calibrations, values' radii."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vashista_gen import emit, spec
from vashista_gen.plan import make_plan
from vashista_gen.runtime import PagedCache

SHAPES = Path(__file__).resolve().parents[1] / "shapes"
CONSTANTS = ("center", "balance", "value_center", "margin")  # spreads belong to summaries of means
CALIBRATED, CENTRED = "hd80_sketch4_calibrated", "hd64_sketch8_dense"


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """name -> the package of that shape; its torch reference stands in for the kernels, so that nothing is compiled."""
    folder = tmp_path_factory.mktemp("cached")
    sys.path.insert(0, str(folder))

    def load(name):
        for path, text in emit.render(make_plan(spec.load(SHAPES / f"{name}.yaml"))).items():
            target = folder / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        constants = importlib.import_module(f"{name}.constants")
        reference = importlib.import_module(f"{name}.reference")
        names = ("summarize_pages", "update_summaries", "decode", "decode_dense", "Calibration")
        functions = {x: getattr(reference, x) for x in names if hasattr(reference, x)}
        return SimpleNamespace(SPEC=importlib.import_module(name).SPEC, constants=constants, **functions)

    yield {name: load(name) for name in (CALIBRATED, CENTRED)}
    sys.path.remove(str(folder))
    for name in [m for m in sys.modules if m.split(".")[0] in (CALIBRATED, CENTRED)]:
        del sys.modules[name]


def layer(package, seed=3):
    """A calibration of the package's shape, unlike any cache's own means."""
    heads, d = (package.SPEC["model"][key] for key in ("num_kv_heads", "head_dim"))
    draw = torch.Generator().manual_seed(seed)
    normal = lambda: torch.randn(heads, d, generator=draw)
    balance = 1 + torch.rand(heads, d // 2, generator=draw)
    return SimpleNamespace(center=normal(), balance=balance, value_center=normal(), margin=0.5)


def poisoned(package, **given):
    """A cache of two rows whose pages hold NaN until something is written to them."""
    cache = PagedCache(package, 12, batch=2, max_pages=8, **given)
    for x in (cache.k_cache, cache.v_cache):
        x.fill_(float("nan"))
    return cache


def append(cache, seed, lengths):
    """Appends normal tokens around 2; returns K and V [batch, tokens, heads, d]."""
    heads, d = (cache.package.SPEC["model"][key] for key in ("num_kv_heads", "head_dim"))
    draw = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2, max(lengths), heads, d, generator=draw) + 2 for _ in "kv")
    cache.append(k, v, lengths)
    return k, v


def constants(cache):
    return {name: getattr(cache.summaries, name).clone() for name in CONSTANTS}


def check_equals_bulk(cache):
    """What is kept of every token in use is what a bulk pass with the same constants makes."""
    kept = constants(cache)
    half = kept["balance"].shape[1] // 2
    given = SimpleNamespace(**{**kept, "balance": kept["balance"][:, :half]})
    tensors = (cache.k_cache, cache.block_table, cache.seq_lens)
    bulk = cache.package.summarize_pages(*tensors, v_cache=cache.v_cache, calibration=given)
    size = cache.page_size
    for b, n in enumerate(cache.lengths):
        for p, page in enumerate(cache.block_table[b, : -(-n // size)].tolist()):
            live = min(size, n - p * size)
            for name in ("sketch_codes", "sketch_residuals"):
                x, y = (getattr(s, name)[page, :, :live] for s in (bulk, cache.summaries))
                assert torch.equal(x, y), f"{name} of page {p} of row {b}"
            assert torch.equal(bulk.radii[page], cache.summaries.radii[page]), f"radii of page {p} of row {b}"
            assert not cache.summaries.radii[page].isnan().any()


HISTORY = ([40, 3], [1, 1], [0, 30], [17, 1])


@pytest.mark.parametrize("name", [CALIBRATED, CENTRED])
def test_appends_keep_sketches_and_radii(packages, name):
    cache = poisoned(packages[name], calibration=layer(packages[name]))
    for seed, lengths in enumerate(HISTORY):
        append(cache, seed, lengths)
        check_equals_bulk(cache)
    cache.free(0)
    append(cache, 9, [5, 2])
    check_equals_bulk(cache)


def test_a_calibration_stays_from_the_first_to_the_last_append(packages):
    """Its centres, balances and margin are the summaries' own, whatever is appended, freed and filled again."""
    package = packages[CALIBRATED]
    given = layer(package)
    cache = poisoned(package, calibration=given)
    for seed, lengths in enumerate(([0, 0], *HISTORY)):
        if any(lengths):
            append(cache, seed, lengths)
        kept = constants(cache)
        assert torch.equal(kept["center"], given.center) and torch.equal(kept["value_center"], given.value_center)
        assert torch.equal(kept["balance"], given.balance.repeat(1, 2))
        assert (kept["margin"] == given.margin).all()
    for row in (0, 1):
        cache.free(row)
    append(cache, 7, [3, 3])
    assert torch.equal(cache.summaries.center, given.center)


def test_centres_are_the_means_of_the_first_fill(packages):
    """Of keys and values of the first append; later appends leave them, the next fill of an empty cache renews them."""
    cache = poisoned(packages[CENTRED])
    places = [x.data_ptr() for x in cache.summaries]
    k, v = append(cache, 0, [40, 0])
    for name, x in (("center", k), ("value_center", v)):
        torch.testing.assert_close(getattr(cache.summaries, name), x[0].mean(0), atol=1e-5, rtol=1e-5)
    first = constants(cache)
    append(cache, 1, [20, 33])
    assert all(torch.equal(first[name], x) for name, x in constants(cache).items())
    check_equals_bulk(cache)
    cache.free(0)
    append(cache, 2, [4, 0])  # row 1 still holds tokens
    assert torch.equal(first["center"], cache.summaries.center)
    cache.free(0)
    cache.free(1)
    k, _ = append(cache, 3, [0, 16])
    torch.testing.assert_close(cache.summaries.center, k[1].mean(0), atol=1e-5, rtol=1e-5)
    check_equals_bulk(cache)
    assert [x.data_ptr() for x in cache.summaries] == places


def test_a_calibrated_package_needs_its_calibration(packages):
    with pytest.raises(
        ValueError, match=f"^{CALIBRATED}: .* need a margin; next: pass calibration={CALIBRATED}.calibration"
    ):
        PagedCache(packages[CALIBRATED], 4)


def test_a_shipped_calibration_file_fits(packages):
    """What the file beside the spec holds, as `calibration(0)` gives it."""
    import json

    package = packages[CALIBRATED]
    held = json.loads((SHAPES / f"{CALIBRATED}.json").read_text())["layers"][0]
    cache = poisoned(package, calibration=package.Calibration.of(held, "cpu"))
    append(cache, 0, [20, 1])
    assert cache.summaries.center.tolist() == torch.tensor(held["center"]).tolist()
    assert (cache.summaries.margin == held["margin"]).all()
    check_equals_bulk(cache)


def test_a_step_over_it_is_certified(packages):
    """Rows that pass are within the bound of exact attention, rows that fail are attended to in whole."""
    package = packages[CENTRED]
    cache = PagedCache(package, 40, batch=2, max_pages=20)
    k, v = append(cache, 0, [600, 90])
    model = package.SPEC["model"]
    draw = torch.Generator().manual_seed(5)
    q = torch.randn(2, model["num_q_heads"], model["head_dim"], generator=draw)
    q[0] = 6 * (k[0, 599] - 2).repeat_interleave(model["num_q_heads"] // model["num_kv_heads"], 0)
    where = (cache.k_cache, cache.v_cache, cache.block_table, cache.seq_lens)
    out, _, certificate = package.decode(q, *where, cache.summaries, return_certificate=True)
    dense, _ = package.decode_dense(q, *where)
    assert certificate.certified.all()
    # both sums are in float32: a few of its roundings of values of norm below 40
    assert ((out - dense).norm(dim=-1) <= certificate.error_bound + 1e-4).all()
    assert (certificate.leakage[0] > 0).all() and (certificate.leakage <= 0.2).all()
