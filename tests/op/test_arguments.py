"""Arguments that do not fit are refused with the documented text, and nothing is written."""

import pytest
import torch
from strategies import Case, Length

from .subject import NAN, make_step

pytestmark = pytest.mark.xdist_group("tiny")

NAME = "tiny"
HALF = lambda x: x.half()
LAST_AXIS_STRIDED = lambda x: torch.stack([x, x], -1)[..., 0]
CONTIGUOUS = r"k_cache must be contiguous within a page \(strides \(any, 64, 32, 1\)\)"
INT32 = "block_table and seq_lens must be int32"
INNER = r"\[num_pages, 16, 2, 32\] \(NHD\)"

# argument -> how it is spoiled, error, message
WRONG = [
    ("q", HALF, TypeError, "q is torch.float16 on cpu, the kernels there are compiled for torch.float32; next: q.to"),
    ("q", lambda x: x[:, :-1], ValueError, r"q must be \[batch, 4, 32\], got \[2, 3, 32\]"),
    ("q", lambda x: x[0], ValueError, r"q must be \[batch, 4, 32\], got \[4, 32\]"),
    ("k_cache", HALF, TypeError, "k_cache is torch.float16 on cpu"),
    ("v_cache", HALF, TypeError, r"v_cache is .*next: v_cache.to\(torch.float32\), or use tiny.reference"),
    ("k_cache", lambda x: x.transpose(1, 2), ValueError, f"k_cache must be {INNER}, got "),
    ("v_cache", lambda x: x[..., :16], ValueError, f"v_cache must be {INNER}, got "),
    ("k_cache", LAST_AXIS_STRIDED, ValueError, CONTIGUOUS),
    ("v_cache", LAST_AXIS_STRIDED, ValueError, "v_cache must be contiguous within a page"),
    ("k_cache", lambda x: x[:1].expand(x.shape), ValueError, "k_cache must be contiguous within a page"),
    ("block_table", torch.Tensor.long, TypeError, f"{INT32}, got torch.int64 and torch.int32"),
    ("seq_lens", torch.Tensor.long, TypeError, f"{INT32}, got torch.int32 and torch.int64"),
    ("block_table", lambda x: x[:1], ValueError, r"block_table must be \[2, max_pages\] and seq_lens \[2\], got "),
    ("block_table", lambda x: x[0], ValueError, r"block_table must be \[2, max_pages\]"),
    ("seq_lens", lambda x: x[:1], ValueError, r"block_table must be \[2, max_pages\] and seq_lens \[2\]"),
    ("block_table", lambda x: x.to("meta"), ValueError, "block_table is on meta, the other tensors on cpu"),
    ("seq_lens", lambda x: x.to("meta"), ValueError, "seq_lens is on meta, the other tensors on cpu"),
    ("k_cache", lambda x: x.to("meta"), ValueError, "k_cache is on meta, the other tensors on cpu"),
    ("out", HALF, ValueError, r"out must be a contiguous torch.float32 \[2, 4, 32\] on cpu"),
    ("out", LAST_AXIS_STRIDED, ValueError, "out must be a contiguous torch.float32"),
    ("lse", lambda x: x[:, :2], ValueError, r"lse must be a contiguous torch.float32 \[2, 4\] on cpu"),
    ("lse", torch.Tensor.double, ValueError, "lse must be a contiguous torch.float32"),
]
PAGES = r"selected_pages must be int32 \[2, 2, 4\]"
SPARSE = [
    ("selected_pages", torch.Tensor.long, ValueError, rf"{PAGES} \(-1 for no page\), got torch.int64"),
    ("selected_pages", lambda x: x[..., :3], ValueError, rf"{PAGES}.*got torch.int32 \[2, 2, 3\]"),
    ("selected_pages", lambda x: x.to("meta"), ValueError, "selected_pages is on meta, the other tensors on cpu"),
    ("summaries", lambda x: type(x)(x[0].float(), *x[1:]), ValueError, "summaries.codes must be contiguous torch.uint"),
    ("summaries", lambda x: x._replace(scales=x.scales[..., :1]), ValueError, "summaries.scales must be contiguous torch.f"),
]


def unchanged(spoiled):
    return all(x.isnan().all() for x in (spoiled["out"], spoiled["lse"]))


def arguments(tiny, sparse):
    step = make_step(tiny, Case((Length(eighths=10), Length(tokens=3))))
    call = {name: getattr(step, name) for name in ("q", "k_cache", "v_cache", "block_table", "seq_lens")}
    call["out"], call["lse"] = torch.full_like(step.q, NAN), torch.full(step.q.shape[:2], NAN)
    if sparse:
        call["summaries"] = step.summarize()
        call["selected_pages"] = step.select_pages(call["summaries"])
    return call


@pytest.mark.parametrize(("argument", "spoil", "error", "message"), [*WRONG, *SPARSE])
def test_decode(tiny, argument, spoil, error, message):
    call = arguments(tiny, sparse=True)
    if argument == "summaries":
        call["selected_pages"] = None
    call[argument] = spoil(call[argument])
    with pytest.raises(error, match=f"^{NAME}: {message}"):
        tiny.package.decode(**call)
    assert unchanged(call)


@pytest.mark.parametrize(("argument", "spoil", "error", "message"), WRONG)
def test_decode_dense(tiny, argument, spoil, error, message):
    call = arguments(tiny, sparse=False)
    call[argument] = spoil(call[argument])
    with pytest.raises(error, match=f"^{NAME}: {message}"):
        tiny.package.decode_dense(**call)
    assert unchanged(call)


@pytest.mark.parametrize(
    ("argument", "spoil", "error", "message"),
    [row for row in WRONG + SPARSE if row[0] in ("q", "block_table", "seq_lens", "summaries")],
)
def test_select_pages(tiny, argument, spoil, error, message):
    call = arguments(tiny, sparse=True)
    call = {name: call[name] for name in ("q", "summaries", "block_table", "seq_lens")}
    call[argument] = spoil(call[argument])
    with pytest.raises(error, match=f"^{NAME}: {message}"):
        tiny.package.select_pages(**call)


UPDATE = [row for row in WRONG if row[0] in ("k_cache", "seq_lens") and "k_cache is on meta" not in row[3]]


@pytest.mark.parametrize(
    ("argument", "spoil", "error", "message"),
    [
        *UPDATE,
        ("block_table", torch.Tensor.long, TypeError, f"{INT32}, got torch.int64"),
        ("block_table", lambda x: x[:1], ValueError, r"block_table must be \[1, .* seq_lens \[1\], got \[1, .* \[2\]"),
        ("block_table", lambda x: x[0], ValueError, "block_table must be "),
        ("old_seq_lens", torch.Tensor.long, TypeError, INT32),
        ("old_seq_lens", lambda x: x[:1], ValueError, r"block_table must be \[.*\] and seq_lens \["),
        ("summaries", lambda x: type(x)(*(y[1:] for y in x)), ValueError, "summaries of .* pages for a cache of "),
        SPARSE[-1],
    ],
)
def test_update_summaries(tiny, argument, spoil, error, message):
    given = arguments(tiny, sparse=True)
    call = {name: given[name] for name in ("summaries", "k_cache", "block_table", "seq_lens")}
    call["old_seq_lens"] = torch.zeros_like(call["seq_lens"])
    call["k_cache"] = call["k_cache"] + 1
    kept = [x.clone() for x in call["summaries"]]
    whole = call["summaries"]
    call[argument] = spoil(call[argument])
    with pytest.raises(error, match=f"^{NAME}: {message}"):
        tiny.package.update_summaries(**call)
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(kept, whole, strict=True))


@pytest.mark.parametrize(
    ("out", "lse", "error", "message"),
    [
        ((3, 2, 4, 16), (3, 2, 4), ValueError, r"out must be \[n, batch, 4, 32\] and lse \[n, batch, 4\], got "),
        ((3, 2, 4, 32), (2, 2, 4), ValueError, r"out must be \[n, batch, 4, 32\]"),
        ((2, 4, 32), (2, 4), ValueError, r"out must be \[n, batch, 4, 32\]"),
        ((3, 2, 4, 32), None, TypeError, "lse must be torch.float32, got torch.float64"),
    ],
)
def test_merge_states(tiny, out, lse, error, message):
    lse = torch.zeros(lse) if lse else torch.zeros(out[:3], dtype=torch.float64)
    with pytest.raises(error, match=f"^{NAME}: {message}"):
        tiny.package.merge_states(torch.zeros(out), lse)


def test_views_are_taken_as_they_are(tiny):
    """q, block table, lengths and page lists may be strided: results are those of contiguous ones."""
    call = arguments(tiny, sparse=True)
    wanted = [x.clone() for x in tiny.package.decode(**call)]
    for name in ("q", "block_table", "seq_lens", "selected_pages"):
        call[name] = LAST_AXIS_STRIDED(call[name])
        assert not call[name].is_contiguous()
    assert all(map(torch.equal, wanted, tiny.package.decode(**call)))
