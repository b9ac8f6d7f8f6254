"""Page summaries: what they hold, that updates equal a bulk pass bit for bit, and that no other page is touched."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import LONG, ONE, Append, Case, Free, cases, examples, histories

from .subject import NAN, empty_cache, make_step, write_tokens
from .summary_properties import check_summaries

ROWS, PAGES_EACH = 3, 6


@examples(12)
@given(case=cases())
@example(case=Case((ONE, LONG)))
@example(case=Case((LONG,), family="huge"))
def test_summaries_hold_means_or_boxes(subject, case):
    check_summaries(subject, case)


def as_bytes(x):
    return x.contiguous().view(torch.uint8)


class World:
    """Rows that grow and are freed in a cache of few pages, with summaries kept up by updates."""

    def __init__(self, subject, seed):
        self.subject, self.draw = subject, torch.Generator().manual_seed(seed)
        pages = ROWS * PAGES_EACH // 2 + 2  # fewer than the rows could hold: pages are reused
        self.free = torch.randperm(pages, generator=self.draw).tolist()
        self.k_cache = empty_cache(subject, pages)
        self.table = torch.full((ROWS, PAGES_EACH), -1, dtype=torch.int32)
        self.lens = [0] * ROWS
        empty = torch.zeros(ROWS, dtype=torch.int32)
        self.summaries = subject.package.summarize_pages(*self._placed(self.k_cache, self.table, empty))
        for x in self.summaries:
            x.fill_(NAN if x.is_floating_point() else 77)

    def _placed(self, *tensors):
        return [x.to(self.subject.device) for x in tensors]

    def append(self, row, count):
        size = self.subject.page_size
        count = min(count, PAGES_EACH * size - self.lens[row])
        count = min(count, (len(self.free) + -(-self.lens[row] // size)) * size - self.lens[row])
        old = self.lens[row]
        for p in range(-(-old // size), -(-(old + count) // size)):
            self.table[row, p] = self.free.pop()
        tokens = torch.randn(count, self.subject.kv_heads, self.subject.head_dim, generator=self.draw)
        write_tokens(self.subject, self.k_cache, self.table[row], old, tokens.to(self.subject.dtype))
        before, touched = [x.clone() for x in self.summaries], self.table[row, old // size : -(-(old + count) // size)]
        touched = touched.long().tolist()
        old_lens = torch.tensor(self.lens, dtype=torch.int32)
        self.lens[row] += count
        # rows that did not grow are renewed to what they are: of their last page not a bit may change
        lens = torch.tensor(self.lens, dtype=torch.int32)
        self.subject.package.update_summaries(
            self.summaries, *self._placed(self.k_cache, self.table, old_lens, lens)
        )
        others = [p for p in range(len(self.k_cache)) if p not in touched]
        for x, y in zip(before, self.summaries, strict=True):
            assert torch.equal(as_bytes(x[others]), as_bytes(y[others])), "an update touched another page"

    def release(self, row):
        pages = self.table[row, : -(-self.lens[row] // self.subject.page_size)].tolist()
        self.free += pages  # what they held stays in the cache, behind the tokens that come next
        self.table[row], self.lens[row] = -1, 0

    def check(self):
        lens = torch.tensor(self.lens, dtype=torch.int32)
        bulk = self.subject.package.summarize_pages(*self._placed(self.k_cache, self.table, lens))
        size, rows = self.subject.page_size, zip(self.table.tolist(), self.lens, strict=True)
        used = [p for row, n in rows for p in row[: -(-n // size)]]
        for x, y in zip(bulk, self.summaries, strict=True):
            assert torch.equal(as_bytes(x[used]), as_bytes(y[used])), "updates differ from a bulk pass"


@examples(15)
@given(history=histories(ROWS), seed=st.integers(0, 99))
@example(history=[Append(0, 17), Free(0), Append(1, 1), Append(0, 16), Append(1, 31)], seed=0)
@example(history=[Append(0, 15), Append(0, 1), Append(0, 1)], seed=0)
def test_updates_equal_a_bulk_pass(subject, history, seed):
    world = World(subject, seed)
    for event in history:
        if isinstance(event, Append):
            world.append(event.row, event.tokens)
        else:
            world.release(event.row)
    world.check()


def test_pages_outside_the_cache_are_skipped(subject):
    """A block table that names a page the cache does not have: nothing is written for it."""
    step = make_step(subject, Case((LONG,)))
    wanted = step.summarize()
    table = torch.cat([step.block_table, step.block_table]).clone()
    table[1, ::2], table[1, 1::2] = -1, 2**30
    summaries = subject.package.summarize_pages(step.k_cache, table, step.seq_lens.repeat(2))
    used = step.pages()[0]
    assert all(torch.equal(x[used], y[used]) for x, y in zip(wanted, summaries, strict=True))
