"""The algorithm of TileLang's own paged sparse GQA decode kernel, written anew: a peer, not the package's kernels.

Follows tile-ai/tilelang, examples/blocksparse_attention/example_tilelang_sparse_gqa_decode_paged.py, which does not
compile with TileLang 0.1.15: a block for each sequence, KV head and split of the row's selected pages; 64 query rows,
of which the group's are used; a pipelined loop of two stages with one page in each step; online softmax in base 2; a
second kernel combines the splits; their number is by the same rule. Unlike there: the end of a sequence is masked in
every page, so that pages may come in any order; a split without pages has the log-sum-exp -inf, not 0; a -1 in a list
is masked, not skipped; bfloat16 and both layouts. As there, a GPU loads whole pages: what lies behind a sequence must
be finite. The C target runs the same loops, to test them, and reads no more than the sequence.
"""

import functools
import logging
import math
from typing import Any

import tilelang
import tilelang.language as T
import torch
from tilelang import tvm

ROWS = 64  # query rows of a block, as there
STAGES = 2
THREADS = 128
MAX_SPLITS = 128
C_SPLITS = 3


class SparseDecode:
    """out = attention of q [batch, q heads, d] over every token of pages [batch, kv heads, P], logical, -1 for none."""

    def __init__(self, spec: dict[str, Any], x: Any, pages: torch.Tensor) -> None:
        model, cache = spec["model"], spec["cache"]
        heads, dim, device = model["num_kv_heads"], model["head_dim"], x.q.device
        target = "c" if device.type == "cpu" else "cuda-sm_{}{}".format(*torch.cuda.get_device_capability(device))
        shape = (heads, model["num_q_heads"] // heads, dim, cache["page_size"], cache["layout"])
        scale = model["sm_scale"] / spec["attention"]["epsilon"]
        self.attend, self.combine = compiled(shape, str(x.q.dtype).removeprefix("torch."), scale, target)
        self.splits = C_SPLITS
        if device.type == "cuda":
            sms = torch.cuda.get_device_properties(device).multi_processor_count
            self.splits = splits(len(x.q) * heads, sms, pages.shape[-1])
        part = (len(x.q), model["num_q_heads"], self.splits)
        self.pages = pages.contiguous()
        self.parts = torch.empty(*part, dim, dtype=torch.float32, device=device), torch.empty(part, device=device)

    def __call__(self, x: Any, out: torch.Tensor) -> torch.Tensor:
        """Writes out, like q."""
        self.attend(x.q, x.k_cache, x.v_cache, x.block_table, x.seq_lens, self.pages, *self.parts)
        self.combine(*self.parts, out)
        return out


def splits(blocks: int, sms: int, pages: int) -> int:
    """The least number of splits that fills the last wave of blocks at least 85 % as well as the best one does."""
    if blocks >= 0.8 * sms or pages <= 4:
        return 1
    waves = [blocks * n / sms for n in range(1, min(MAX_SPLITS, sms, pages) + 1)]
    full = [wave / math.ceil(wave) for wave in waves]
    return 1 + next(i for i, share in enumerate(full) if share >= 0.85 * max(full))


@functools.cache
def compiled(shape: tuple, dtype: str, scale: float, target: str) -> tuple[Any, Any]:
    """(the kernel that attends, the one that combines), for `c` or `cuda-<arch>`."""
    logging.getLogger("tilelang").setLevel(logging.WARNING)
    on_gpu = target != "c"
    functions = _attend(*shape, dtype, scale, on_gpu), _combine(shape[0] * shape[1], shape[2], dtype, on_gpu)
    if not on_gpu:
        with tvm.target.Target("c"):
            made = [tilelang.compile(f, target="c", execution_backend="cython") for f in functions]
        return made[0], made[1]
    arch = target.removeprefix("cuda-") + ("a" if target in ("cuda-sm_90", "cuda-sm_100") else "")
    made = [tilelang.compile(f, target={"kind": "cuda", "arch": arch}) for f in functions]
    return made[0], made[1]


def _attend(heads, group, dim, page_size, layout, dtype, scale, on_gpu):
    batch, num_pages, max_pages = T.dynamic("batch"), T.dynamic("num_pages"), T.dynamic("max_pages")
    listed, parts = T.dynamic("listed"), T.dynamic("parts")
    rows = ROWS if on_gpu else group
    shared = T.alloc_shared if on_gpu else T.alloc_local
    fragment = T.alloc_fragment if on_gpu else T.alloc_local
    parallel = T.Parallel if on_gpu else T.grid
    each = T.Parallel if on_gpu else T.serial
    loop = (lambda n: T.Pipelined(n, num_stages=STAGES)) if on_gpu else T.serial
    inner = (page_size, heads, dim) if layout == "NHD" else (heads, page_size, dim)
    row = lambda x, page, j, h, d: x[page, j, h, d] if layout == "NHD" else x[page, h, j, d]
    factor = scale * math.log2(math.e)

    @T.macro
    def load(tile, x, page, h, left):
        if on_gpu:
            if layout == "NHD":
                T.copy(x[page, 0:page_size, h, :], tile)
            else:
                T.copy(x[page, h, 0:page_size, :], tile)
        else:
            for j, d in T.grid(page_size, dim):
                tile[j, d] = T.if_then_else(j < left, row(x, page, j, h, d), 0)

    @T.macro
    def dots(q, k, s):
        if on_gpu:
            T.gemm(q, k, s, transpose_B=True, clear_accum=True, policy=T.GemmWarpPolicy.FullRow)
        else:
            for g, j in T.grid(rows, page_size):
                s[g, j] = 0.0
                for d in T.serial(dim):
                    s[g, j] += q[g, d] * k[j, d]

    @T.macro
    def accumulate(weights, cast, v, acc):
        if on_gpu:
            T.copy(weights, cast)
            T.gemm(cast, v, acc, policy=T.GemmWarpPolicy.FullRow)
        else:
            for g, j, d in T.grid(rows, page_size, dim):
                acc[g, d] += weights[g, j] * v[j, d]

    @T.prim_func
    def attend(
        q: T.Tensor((batch, heads * group, dim), dtype),
        k_cache: T.Tensor((num_pages, *inner), dtype),
        v_cache: T.Tensor((num_pages, *inner), dtype),
        block_table: T.Tensor((batch, max_pages), "int32"),
        seq_lens: T.Tensor((batch,), "int32"),
        pages: T.Tensor((batch, heads, listed), "int32"),
        part_out: T.Tensor((batch, heads * group, parts, dim), "float32"),
        part_lse: T.Tensor((batch, heads * group, parts), "float32"),
    ):
        with T.Kernel(batch, heads, parts, threads=THREADS if on_gpu else None) as (b, h, s):
            queries = shared((rows, dim), dtype)
            keys, values = shared((page_size, dim), dtype), shared((page_size, dim), dtype)
            scores, cast = fragment((rows, page_size), "float32"), fragment((rows, page_size), dtype)
            acc = fragment((rows, dim), "float32")
            top, before, factors = (fragment((rows,), "float32") for _ in range(3))
            mass, total = fragment((rows,), "float32"), fragment((rows,), "float32")
            for g, d in parallel(rows, dim):
                queries[g, d] = T.if_then_else(g < group, q[b, T.min(h * group + g, heads * group - 1), d], 0)
            T.clear(acc)
            T.clear(total)
            T.fill(top, -1e30)
            count = T.floordiv(listed, parts) + T.if_then_else(s < listed % parts, 1, 0)
            first = T.floordiv(listed, parts) * s + T.min(s, listed % parts)
            for i in loop(count):
                logical = pages[b, h, first + i]
                page = T.if_then_else(logical >= 0, block_table[b, T.max(logical, 0)], 0)
                left = T.if_then_else(logical >= 0, seq_lens[b] - logical * page_size, 0)
                load(keys, k_cache, page, h, left)
                load(values, v_cache, page, h, left)
                dots(queries, keys, scores)
                for g, j in parallel(rows, page_size):
                    scores[g, j] = T.if_then_else(j < left, scores[g, j] * factor, -T.infinity("float32"))
                T.copy(top, before)
                T.reduce_max(scores, top, dim=1, clear=False)
                for g in each(rows):
                    factors[g] = T.exp2(before[g] - top[g])
                for g, j in parallel(rows, page_size):
                    scores[g, j] = T.exp2(scores[g, j] - top[g])
                T.reduce_sum(scores, mass, dim=1)
                for g in each(rows):
                    total[g] = total[g] * factors[g] + mass[g]
                for g, d in parallel(rows, dim):
                    acc[g, d] *= factors[g]
                accumulate(scores, cast, values, acc)
            for g, d in parallel(rows, dim):
                if g < group:
                    part_out[b, h * group + g, s, d] = T.if_then_else(total[g] > 0, acc[g, d] / total[g], 0)
            for g in each(rows):
                if g < group:
                    part_lse[b, h * group + g, s] = T.if_then_else(
                        total[g] > 0, T.log2(total[g]) + top[g], -T.infinity("float32")
                    )

    return attend


def _combine(heads, dim, dtype, on_gpu):
    batch, parts = T.dynamic("batch"), T.dynamic("parts")
    fragment = T.alloc_fragment if on_gpu else T.alloc_local
    each = T.Parallel if on_gpu else T.serial

    @T.prim_func
    def combine(
        part_out: T.Tensor((batch, heads, parts, dim), "float32"),
        part_lse: T.Tensor((batch, heads, parts), "float32"),
        out: T.Tensor((batch, heads, dim), dtype),
    ):
        with T.Kernel(heads, batch, threads=THREADS if on_gpu else None) as (h, b):
            acc = fragment((dim,), "float32")
            top = T.alloc_var("float32")
            total = T.alloc_var("float32")
            top = -1e30
            total = 0.0
            for s in T.serial(parts):
                top = T.max(top, part_lse[b, h, s])
            for d in each(dim):
                acc[d] = 0.0
            for s in T.serial(parts):
                total += T.exp2(part_lse[b, h, s] - top)
                for d in each(dim):
                    acc[d] += part_out[b, h, s, d] * T.exp2(part_lse[b, h, s] - top)
            for d in each(dim):
                out[b, h, d] = T.cast(T.if_then_else(total > 0, acc[d] / total, 0), dtype)

    return combine
