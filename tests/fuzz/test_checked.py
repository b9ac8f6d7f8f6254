"""Checked mode: metadata that does not fit is refused with its place and value; what fits is computed as without."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vashista_gen.generated import tiny

PAGES, WIDTH, BATCH, PAGE, HEADS, ROUTED = 12, 6, 2, 16, 2, 4
ROOM = WIDTH * PAGE
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
DRAW = torch.Generator().manual_seed(0)
Q = torch.randn(BATCH, 4, 32, generator=DRAW)
K, V = (torch.randn(PAGES, PAGE, HEADS, 32, generator=DRAW) for _ in "kv")

odd = st.sampled_from([INT_MIN, -2, -1, PAGES, PAGES + 1, ROOM, ROOM + 1, INT_MAX])
length = st.one_of(st.integers(0, ROOM), st.integers(0, ROOM), st.integers(0, ROOM), odd)
page = st.one_of(*[st.integers(0, PAGES - 1)] * 12, odd)
listed = st.one_of(*[st.integers(-1, WIDTH - 1)] * 4, odd)


def int32(values, *shape):
    return torch.tensor(values, dtype=torch.int32).view(shape or -1)


def empty(k_cache):
    """Summaries of a cache in which nothing is."""
    nothing = torch.zeros(1, 1, dtype=torch.int32)
    return tiny.summarize_pages(k_cache, nothing, nothing[0])


tables = st.lists(page, min_size=BATCH * WIDTH, max_size=BATCH * WIDTH).map(lambda x: int32(x, BATCH, WIDTH))
lengths = st.lists(length, min_size=BATCH, max_size=BATCH).map(int32)
lists = st.lists(listed, min_size=BATCH * HEADS * ROUTED, max_size=BATCH * HEADS * ROUTED)


def wrong_entry(table, lens, old=None, selected=None):
    """Name of the first argument that holds something wrong, by loops over plain numbers; None if all is well."""
    table, lens = table.tolist(), lens.tolist()
    if any(not 0 <= n <= ROOM for n in lens):
        return "seq_lens"
    used = [-(-n // PAGE) for n in lens]
    if any(not 0 <= row[p] < PAGES for row, n in zip(table, used, strict=True) for p in range(n)):
        return "block_table"
    if old is not None and any(not 0 <= x <= n for x, n in zip(old.tolist(), lens, strict=True)):
        return "old_seq_lens"
    if selected is not None and any(
        not -1 <= p < n for rows, n in zip(selected.tolist(), used, strict=True) for row in rows for p in row
    ):
        return "selected_pages"
    return None


def agrees(call, wrong, unchecked):
    """`call` in checked mode refuses the wrong argument, or gives what it gives without."""
    if wrong is None:
        with tiny.checked():
            found = call()
        assert all(map(torch.equal, found, unchecked()))
        return
    with (
        pytest.raises(ValueError, match=rf"^tiny: {wrong}\[\d.*\] is -?\d+, it must be .*; next: mend ") as caught,
        tiny.checked(),
    ):
        call()
    assert re.search(r"[1-9]\d* such entries", str(caught.value))


@settings(deadline=None, max_examples=80)
@given(tables, lengths)
@example(torch.zeros(BATCH, WIDTH, dtype=torch.int32), int32([INT_MAX, 1]))
def test_decode_and_dense(table, lens):
    wrong = wrong_entry(table, lens)
    dense = lambda: tiny.decode_dense(Q, K, V, table, lens)
    agrees(dense, wrong, dense)
    summaries = empty(K)
    decode = lambda: tiny.decode(Q, K, V, table, lens, summaries)
    agrees(decode, wrong, decode)
    select = lambda: [tiny.select_pages(Q, summaries, table, lens), tiny.score_pages(Q, summaries, table, lens)]
    agrees(select, wrong, select)


@settings(deadline=None, max_examples=80)
@given(tables, lengths, lengths)
def test_update_summaries(table, old, lens):
    def update():
        summaries = empty(K)
        tiny.update_summaries(summaries, K, table, old, lens)
        return summaries

    agrees(update, wrong_entry(table, lens, old=old), update)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, ROOM), min_size=BATCH, max_size=BATCH), lists)
def test_selected_pages(lens, selected):
    table, lens = torch.arange(PAGES, dtype=torch.int32).view(BATCH, WIDTH), int32(lens, BATCH)
    selected = int32(selected, BATCH, HEADS, ROUTED)
    decode = lambda: tiny.decode(Q, K, V, table, lens, None, selected_pages=selected)
    agrees(decode, wrong_entry(table, lens, selected=selected), decode)


def test_only_what_a_length_reaches_is_looked_at():
    table = torch.full((BATCH, WIDTH), INT_MIN, dtype=torch.int32)
    table[:, 0] = 3
    with tiny.checked():
        tiny.decode_dense(Q, K, V, table, int32([PAGE, 0], BATCH))
        with pytest.raises(ValueError, match=rf"block_table\[0, 1\] is {INT_MIN}, .* 0 to 11; 1 such entries"):
            tiny.decode_dense(Q, K, V, table, int32([PAGE + 1, 0], BATCH))


def test_it_ends_with_its_block_and_nests():
    wrong = int32([-1, 0], BATCH)
    table = torch.zeros(BATCH, WIDTH, dtype=torch.int32)
    with pytest.raises(ValueError, match="seq_lens"), tiny.checked():
        tiny.decode_dense(Q, K, V, table, wrong)
    tiny.decode_dense(Q, K, V, table, wrong)  # unchecked again: a negative length is an empty sequence
    with tiny.checked(), tiny.checked(False):
        tiny.decode_dense(Q, K, V, table, wrong)


@pytest.mark.parametrize(("value", "refused"), [("1", True), ("0", False), ("", False)])
def test_the_environment_switches_it_on(value, refused):
    code = (
        "import torch; from vashista_gen.generated import tiny\n"
        "q, k, i = torch.zeros(1, 4, 32), torch.zeros(1, 16, 2, 32), torch.zeros(1, 1, dtype=torch.int32)\n"
        "try:\n    tiny.decode_dense(q, k, k, i, i[0] - 1); print('computed')\n"
        "except ValueError as error:\n    print(error)"
    )
    environment = {**os.environ, "VASHISTA_GEN_CHECKED": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tiny: seq_lens[0] is -1, it must be 0 to 16" if refused else "computed")


@pytest.mark.parametrize("other", [PAGES - 1, PAGES + 1])
def test_caches_and_summaries_of_unequal_sizes_are_refused_always(other):
    table, lens = torch.zeros(BATCH, WIDTH, dtype=torch.int32), torch.full((BATCH,), ROOM, dtype=torch.int32)
    short = torch.zeros(other, *K.shape[1:])
    summaries, wrong = empty(K), empty(short)
    mixed = type(wrong)(summaries[0], *wrong[1:])
    with pytest.raises(ValueError, match=f"^tiny: k_cache has {PAGES} pages and v_cache {other}; next: "):
        tiny.decode_dense(Q, K, short, table, lens)
    for call in (
        lambda: tiny.decode(Q, K, V, table, lens, wrong),
        lambda: tiny.decode(Q, K, V, table, lens, mixed),
        lambda: tiny.select_pages(Q, mixed, table, lens),
        lambda: tiny.update_summaries(mixed, K, table, lens, lens),
    ):
        with pytest.raises(ValueError, match=f"^tiny: summaries of .* pages for a cache of {PAGES}"):
            call()
