"""The demo's figures against the definitions they stand for."""

import math

import pytest
import torch

from vashista_gen.demo import measure
from vashista_gen.generated import smollm2_135m, tiny
from vashista_gen.plan import cost, make_plan
from vashista_gen.runtime import PagedCache
from vashista_gen.spec import load, specs_root


def test_divergence_agreement_and_perplexity():
    dense = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    sparse = torch.tensor([[0.0, math.log(3.0)], [2.0, 0.0]])
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert measure.divergence(dense, sparse).tolist() == pytest.approx([kl, 0.0], abs=1e-7)
    assert measure.agreement(dense, sparse).tolist() == [False, True]
    assert measure.perplexity(torch.zeros(5, 11), torch.arange(5)) == pytest.approx(11)


def test_the_probe_sees_what_the_sparse_op_leaves_out():
    draw = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 150, 2, 32, generator=draw) for _ in "kv")
    q = torch.randn(1, 4, 32, generator=draw)
    cache = PagedCache(tiny, 10)
    cache.append(k, v)
    tensors = (q, cache.k_cache, cache.v_cache, cache.block_table, cache.seq_lens)
    out, lse = tiny.decode_dense(*tensors)
    probe = measure.Probe(tiny, num_layers=2)
    probe(1, q, cache, out, lse)
    probe(0, q, cache, out, lse)
    assert probe.errors.shape == probe.kept.shape == (2, 1, 4)
    chosen = tiny.select_pages(q, cache.summaries, cache.block_table, cache.seq_lens)[0]
    for head in range(4):
        weight = torch.softmax(q[0, head] @ k[0, :, head // 2].T * tiny.SPEC["model"]["sm_scale"], dim=-1)
        kept = torch.isin(torch.arange(150) // 16, chosen[head // 2])
        assert float(probe.kept[0, 0, head]) == pytest.approx(float(weight[kept].sum()), rel=1e-5)
        sparse = (weight[kept] / weight[kept].sum()) @ v[0, kept, head // 2]
        error = (sparse - out[0, head]).norm() / out[0, head].norm()
        assert float(probe.errors[1, 0, head]) == pytest.approx(float(error), rel=1e-4)


def test_times():
    assert measure.times([i * 1e-6 for i in range(1, 22)]) == pytest.approx({"median_us": 11, "p10_us": 3})


@pytest.mark.parametrize("package", [smollm2_135m, tiny], ids=lambda p: p.SPEC["name"])
def test_bytes_are_those_of_the_arrays(package):
    """plan.cost's formulas with float32 items give the sizes that a cache on the CPU really has."""
    cache, name = PagedCache(package, 6), package.SPEC["name"]
    pages, length = package.SPEC["routing"]["pages"] + 10, 16 * (package.SPEC["routing"]["pages"] + 10)
    read = measure.bytes_read(name, length)
    per_page = {name: x[0].nbytes for name, x in zip(type(cache.summaries)._fields, cache.summaries, strict=True)}
    sketches = sum(bytes_ for name, bytes_ in per_page.items() if name in ("sketch_codes", "sketch_scales"))
    summaries = sum(bytes_ for name, bytes_ in per_page.items() if name in ("codes", "scales"))
    assert read["summaries"] == pages * summaries
    assert read.get("sketches", 0) == package.SPEC["routing"]["pages"] * sketches
    assert read["dense"] == pages * (cache.k_cache[0].nbytes + cache.v_cache[0].nbytes + 4)
    tokens = package.SPEC["candidates"]["tokens"]
    tokens = 16 * package.SPEC["routing"]["pages"] if tokens == "all" else tokens
    assert read["keys"] == tokens * cache.k_cache[0].nbytes // 16
    assert read["sparse"] == sum(read[part] for part in ("summaries", "sketches", "keys", "values", "tables"))
    spec = load(str(specs_root().joinpath(f"{name}.yaml")))
    as_in_the_spec = measure.bytes_read(name, length, spec.cache.kv_dtype)
    assert as_in_the_spec["sparse"] == cost.sparse_bytes(make_plan(spec), length, steps=1).total
