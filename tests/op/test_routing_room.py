"""Routing in one launch takes no more shared memory than a block has, and is left out where it would."""

from __future__ import annotations

import importlib
import re

import pytest

from vashista_gen import spec
from vashista_gen.plan import make_plan
from vashista_gen.plan.plan import SELECTION_BYTES
from vashista_gen.spec.hardware import architectures, hardware_of

SPEC = """name: {name}
model: {{num_q_heads: {heads}, num_kv_heads: 2, head_dim: {head_dim}}}
cache: {{page_size: 16}}
routing: {{summary: {summary}, summary_bits: {bits}, pages: 64, levels: 2, super_pages: 16, beam: {beam}}}
targets: [cuda-sm_90a]
"""
FORMS = [(1, "mean", 8, 256, 64), (8, "mean", 16, 128, 128), (12, "mean", 16, 64, 128), (16, "box", 8, 32, 128)]


def routed(group: int, summary: str, bits: int, beam: int, head_dim: int):
    name = f"room_{group}_{summary}_{beam}"
    text = SPEC.format(name=name, heads=2 * group, head_dim=head_dim, summary=summary, bits=bits, beam=beam)
    return spec.loads(text, f"{name}.yaml")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "_".join(map(str, form)))
def test_a_block_has_the_shared_memory(packages, form):
    loaded = routed(*form)
    plan, lower = make_plan(loaded), importlib.import_module(f"{packages(loaded).__name__}.kernels.lower")
    source, _ = lower.cuda_source("route_pages", "cuda-sm_90a")
    asked, more = lower.MORE_SHARED["route_pages"]
    group = form[0]
    row = 4 * (group if group <= 2 else -(-group // 4) * 4)  # bytes of an entry's scores, 16 at a time
    for supers in (1, plan.routed_supers - 1, plan.routed_supers):  # a launch asks for the rows of its entries
        for max_pages in (16 * supers - 15, 16 * supers):
            asks = eval(asked.replace("/", "//"), {"max_pages": max_pages})
            assert asks == (supers + 16 * loaded.routing.beam) * row <= more
    assert asks == more and f"{asked});" in source
    taken = int(re.search(r"dynamicSmemBytes = (\d+) \+ more;", source)[1]) + more + SELECTION_BYTES
    assert f"MaxDynamicSharedMemorySize, {taken - more - SELECTION_BYTES} + {more});" in source
    assert taken <= hardware_of("cuda-sm_90a").shared_bytes_per_block
    for one in architectures():
        capability = tuple(map(int, one.compute_capability.split(".")))
        if capability in plan.routed_on:
            assert taken <= one.shared_bytes_per_block and capability >= (9, 0), one.name
    assert (9, 0) in plan.routed_on


def test_a_beam_of_more_pages_than_threads_choose_among_is_routed_in_four_launches():
    assert make_plan(routed(4, "mean", 8, 256, 64)).fused_routing
    assert not make_plan(routed(4, "mean", 8, 257, 64)).fused_routing
