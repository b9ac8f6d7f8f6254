"""Every kernel of every shipped spec lowers to CUDA, without GPU and nvcc; with nvcc, to machine code.

So do those of certificates and fallbacks, which no shipped spec has.
"""

import ctypes
import importlib
import json
import re

import pytest

from vashista_gen import spec
from vashista_gen.plan import make_plan
from vashista_gen.spec.footprint import page_kernels

from .conftest import ROOT
from .lowered import alike_branches

SHIPPED = sorted(p.stem for p in (ROOT / "specs").glob("*.yaml"))
CERTIFIED = ("hd64_sketch8_dense", "hd48_estimate_dense")
TARGETS = ("cuda-sm_80", "cuda-sm_90a")
SMALL = """
name: small
model: {num_q_heads: 2, num_kv_heads: 1, head_dim: 32}
cache: {page_size: 16}
routing: {pages: 3, sink_pages: 0, recent_pages: 1, summary: mean, summary_bits: 16}
candidates: {tokens: 20}
targets: [cuda-sm_90a]
"""


def parts_of(packages, wanted):
    """(library, kernels.lower) of a package."""
    package = packages(wanted)
    return tuple(importlib.import_module(f"{package.__name__}.{part}") for part in ("library", "kernels.lower"))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=pytest.mark.xdist_group(f"lower-{name}-{target}"))
        for name in SHIPPED
        for target in TARGETS
    ]
    + [pytest.param(name, "cuda-sm_90a", marks=pytest.mark.xdist_group(f"lower-{name}")) for name in CERTIFIED],
)
def test_every_kernel_lowers(packages, name, target):
    path = ROOT / ("tests/shapes" if name in CERTIFIED else "specs") / f"{name}.yaml"
    loaded = spec.load(path)
    library, lower = parts_of(packages, loaded)
    routing, model, page_size = loaded.routing, loaded.model, loaded.cache.page_size
    held = page_kernels(routing.summary, routing.subpage, page_size, model.head_dim, model.dtype, 64, routing.levels)["summarize"]
    for kernel in library.KERNELS:
        source, tensors = lower.cuda_source(kernel, target)
        if kernel == "summarize":
            assert 0 < int(re.search(r"dynamicSmemBytes = (\d+)", source)[1]) <= held
        assert f'extern "C" int {kernel}_kernel_launch(' in source and "__global__" in source
        assert tensors and "double" not in source
        assert not alike_branches(source), kernel
        # a kernel whose blocks send each other something is launched as clusters of them, on GPUs that have such; on others the
        # last block merges
        clustered = "#if 1\n  wanted[1].id = cudaLaunchAttributeClusterDimension" in source
        sends = [("start_receiving()", "receive_rows<"), ("start_merge_in_cluster<", "merge_in_cluster<")]
        found = [tuple(call in source for call in calls) for calls in sends]
        assert all(first == last for first, last in found), kernel
        assert clustered == (kernel in lower.CLUSTERS and target == "cuda-sm_90a"), kernel
        assert any(found[0] + found[1]) == (clustered or kernel == "route_pages"), kernel  # which no other GPU has
        merges = kernel in lower.CLUSTERS and kernel not in lower.ROUTE
        assert ("last_to_arrive(" in source, found[1][0]) == (merges and not clustered, merges and clustered), kernel


def test_given_pages_are_read_behind_the_wait(packages):
    """The kernel before may have written them: until it has ended they are asked for, and no load may come in front of that."""
    loaded = spec.load(ROOT / "tests/shapes/hd64_two_levels.yaml")
    _, lower = parts_of(packages, loaded)
    for target in TARGETS:
        source, _ = lower.cuda_source("attend_given_pages", target)
        body = source[source.rindex("__launch_bounds__") :]
        wait = body.index("wait_for_kernel_before();")
        given = ("q", "block_table", "seq_lens", "selected_pages")
        held = [body.index(f"READ_FROM_HERE({name});") for name in given]
        assert wait < min(held) and max(held) < body.index("load_query<")
        used = re.sub(r"ask_for_sector\(.*", "", body[body.index("{") : max(held)])
        assert not re.search(rf"\b({'|'.join(given)})\b[^)]*\[", used)


def test_long_lists_of_given_pages_are_ordered_once():
    text = "name: many\nmodel: {{num_q_heads: 4, num_kv_heads: 1, head_dim: 64}}\ncache: {{page_size: 16}}\nrouting: {{pages: {}}}\n"
    kernels = lambda pages: make_plan(spec.loads(text.format(pages), "many.yaml")).kernels
    assert "attend_given_pages" in kernels(256) and "attend_given_pages" not in kernels(257)
    assert "order_pages" in kernels(256) and "order_pages" in kernels(257)  # on a CPU, and everywhere


@pytest.mark.nvcc
@pytest.mark.xdist_group("nvcc")
def test_machine_code(packages, tmp_path):
    """nvcc compiles every kernel for sm_90a; the library exports a launcher of each, under the recorded names."""
    library, _ = parts_of(packages, spec.loads(SMALL, "small.yaml"))
    if library.cuda_compiler() is None:
        pytest.skip("needs nvcc")
    place = library.build("cuda-sm_90a", tmp_path / "library")
    record = json.loads((place / "library.json").read_text())
    assert record["target"] == "cuda-sm_90a" and tuple(record["kernels"]) == library.KERNELS
    exported = (place / "kernels.so").read_bytes()
    for kernel in library.KERNELS:
        assert f"{kernel}_kernel_launch".encode() in exported
    try:
        loaded = ctypes.CDLL(str(place / "kernels.so"))
    except OSError:
        return  # no CUDA runtime to load it with
    assert all(hasattr(loaded, f"{kernel}_kernel_launch") for kernel in library.KERNELS)
