"""On a GPU: a captured update and run follow each new plan; and, where FlashInfer is installed, its results are met."""

from __future__ import annotations

import pytest
import torch

from vashista_gen.generated import llama3_8b
from vashista_gen.generated.llama3_8b import tuning
from vashista_gen.integrations.flashinfer import SparseDecodeWithPagedKVCacheWrapper

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SIZES = (32, 8, 128, 16)
POOL, WIDTH = 1024, 256


def lists(lengths):
    """Page lists in an order of their own, on the GPU: sequence b takes pages from b * WIDTH on, backwards."""
    counts = [-(-n // 16) for n in lengths]
    indptr = torch.tensor([sum(counts[:i]) for i in range(len(counts) + 1)])
    indices = torch.cat([torch.arange(n).flip(0) + b * WIDTH for b, n in enumerate(counts)])
    last = torch.tensor([(n - 1) % 16 + 1 for n in lengths])
    return [x.int().cuda() for x in (indptr, indices, last)]


def cache():
    draw = torch.Generator("cuda").manual_seed(0)
    return torch.randn(POOL, 2, 16, 8, 128, generator=draw, device="cuda", dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def sparse():
    """Whatever was measured on this device: the two wrappers know of lengths of their own, and both stay sparse."""
    with tuning.changed(dense_up_to=()):
        yield


def test_a_captured_step_follows_the_plans():
    kv, lengths = cache(), [3000, 1500]
    q = torch.randn(2, 32, 128, device="cuda", dtype=torch.bfloat16)
    last = torch.zeros(2, dtype=torch.int32, device="cuda")
    fixed = SparseDecodeWithPagedKVCacheWrapper(
        llama3_8b, use_cuda_graph=True, paged_kv_last_page_len_buffer=last, max_pages=WIDTH
    )
    fixed.plan(*lists(lengths), *SIZES)
    fixed.summarize(kv)
    out, lse = torch.empty_like(q), torch.empty(2, 32, device="cuda")
    step = lambda: (fixed.update(kv, 1), fixed.run(q, kv, out=out, lse=lse, return_lse=True))
    step()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for grown in range(3):
        lengths = [n + 1 for n in lengths]
        fixed.plan(*lists(lengths), *SIZES)
        q.copy_(torch.randn_like(q))
        graph.replay()
        eager = SparseDecodeWithPagedKVCacheWrapper(llama3_8b)
        eager.plan(*lists(lengths), *SIZES)
        eager.summarize(kv)
        wanted, wanted_lse = eager.run(q, kv, return_lse=True)
        # another table width is another number of splits: the last bit of bfloat16 may differ
        torch.testing.assert_close(out.float(), wanted.float(), rtol=2**-7, atol=2**-7, msg=f"step {grown}")
        torch.testing.assert_close(lse, wanted_lse, rtol=1e-4, atol=1e-4)


def test_against_flashinfer():
    flashinfer = pytest.importorskip("flashinfer")
    kv, given = cache(), lists([700, 33])  # below candidates.dense_below: every token is kept
    q = torch.randn(2, 32, 128, device="cuda", dtype=torch.bfloat16)
    workspace = torch.empty(128 * 2**20, dtype=torch.uint8, device="cuda")
    options = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}
    theirs = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2", use_tensor_cores=True)
    ours = SparseDecodeWithPagedKVCacheWrapper(llama3_8b, workspace, "NHD", backend="fa2", use_tensor_cores=True)
    for wrapper in (theirs, ours):
        wrapper.plan(*given, *SIZES, **options)
    ours.summarize(kv)
    wanted, found = (wrapper.run(q, kv, return_lse=True) for wrapper in (theirs, ours))
    torch.testing.assert_close(found[0].float(), wanted[0].float(), rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-3, atol=1e-3)
