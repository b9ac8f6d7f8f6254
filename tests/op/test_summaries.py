"""Page summaries: what they hold, that updates equal a bulk pass bit for bit, and that no other page is touched."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import LONG, ONE, Append, Case, Free, cases, examples, histories

from vashista_gen import spec

from .conftest import on_device
from .subject import CONSTANTS, NAN, by_token, empty_cache, make_step, write_tokens
from .summary_properties import check_summaries

ROWS, PAGES_EACH = 3, 6
MANY_MEANS = """name: hd32_many_means
model: {num_q_heads: 4, num_kv_heads: 2, head_dim: 32}
cache: {page_size: 64}
routing: {summary: subpage_mean, subpage: 2, pages: 4}
sketch: {bits: 8, transform: hadamard}
candidates: {tokens: 192}
certificate: {kind: rigorous, tolerance: 0.05}
targets: [c]
"""


@examples(12)
@given(case=cases())
@example(case=Case((ONE, LONG)))
@example(case=Case((LONG,), family="huge"))
def test_summaries_hold_means_or_boxes(subject, case):
    check_summaries(subject, case)


def test_pages_of_more_means_than_tokens_are_worked_on_at_once(packages):
    """The buffer of a page's 32 means serves 16 tokens' sketches and radii as well."""
    subject = on_device(packages(spec.loads(MANY_MEANS, "hd32_many_means.yaml")), "cpu")
    for family in ("normal", "huge", "outliers"):
        check_summaries(subject, Case((LONG, ONE), seed=2, family=family))


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
        self.v_cache = self.k_cache.clone()
        self.calibration = subject.calibration(self.draw)  # centres that do not follow from what the cache holds
        self.summaries = self._bulk(torch.zeros(ROWS, dtype=torch.int32))
        for name, x in zip(type(self.summaries)._fields, self.summaries, strict=True):
            if name not in CONSTANTS:
                x.fill_(NAN if x.is_floating_point() else 77)

    def _bulk(self, lens):
        where = self._placed(self.k_cache, self.table, lens)
        v_cache, calibration = self.v_cache.to(self.subject.device), self.calibration
        return self.subject.package.summarize_pages(*where, v_cache=v_cache, calibration=calibration)

    def _placed(self, *tensors):
        return [x.to(self.subject.device) for x in tensors]

    def append(self, row, count):
        size = self.subject.page_size
        count = min(count, PAGES_EACH * size - self.lens[row])
        count = min(count, (len(self.free) + -(-self.lens[row] // size)) * size - self.lens[row])
        old = self.lens[row]
        for p in range(-(-old // size), -(-(old + count) // size)):
            self.table[row, p] = self.free.pop()
        for cache in (self.k_cache, self.v_cache):
            tokens = torch.randn(count, self.subject.kv_heads, self.subject.head_dim, generator=self.draw)
            write_tokens(self.subject, cache, self.table[row], old, tokens.to(self.subject.dtype))
        before, touched = [x.clone() for x in self.summaries], self.table[row, old // size : -(-(old + count) // size)]
        touched = touched.long().tolist()
        old_lens = torch.tensor(self.lens, dtype=torch.int32)
        self.lens[row] += count
        # rows that did not grow are renewed to what they are: of their last page not a bit may change
        lens = torch.tensor(self.lens, dtype=torch.int32)
        self.subject.package.update_summaries(
            self.summaries, *self._placed(self.k_cache, self.table, old_lens, lens),
            v_cache=self.v_cache.to(self.subject.device),
        )  # fmt: skip
        others = [p for p in range(len(self.k_cache)) if p not in touched]
        for name, x, y in zip(type(self.summaries)._fields, before, self.summaries, strict=True):
            others_of = slice(None) if name in CONSTANTS else others
            assert torch.equal(as_bytes(x[others_of]), as_bytes(y[others_of])), "an update touched another page"

    def release(self, row):
        pages = self.table[row, : -(-self.lens[row] // self.subject.page_size)].tolist()
        self.free += pages  # what they held stays in the cache, behind the tokens that come next
        self.table[row], self.lens[row] = -1, 0

    def _last_of_supers(self):
        """bool [num_pages]: the last pages of whole super-pages."""
        size, last = self.subject.spec["routing"]["super_pages"], torch.zeros(len(self.k_cache), dtype=torch.bool)
        for row, n in zip(self.table.tolist(), self.lens, strict=True):
            last[row[size - 1 : n // self.subject.page_size // size * size : size]] = True
        return last

    def check(self):
        lens, size = torch.tensor(self.lens, dtype=torch.int32), self.subject.page_size
        bulk, live = self._bulk(lens), torch.zeros(len(self.k_cache), size, dtype=torch.bool)
        for row, n in zip(self.table.tolist(), self.lens, strict=True):
            for p, page in enumerate(row[: -(-n // size)]):
                live[page, : n - p * size] = True
        for name, x, y in zip(type(bulk)._fields, bulk, self.summaries, strict=True):
            if name not in CONSTANTS:
                # what the numbers of tokens behind a sequence are is of no account
                of_tokens = name in by_token(self.subject)
                held = self._last_of_supers() if name.startswith("super_") else live.any(1)
                x, y = (z.transpose(1, 2)[live] if of_tokens else z[held] for z in (x.cpu(), y.cpu()))
            assert torch.equal(as_bytes(x), as_bytes(y)), f"{name}: updates differ from a bulk pass"


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
    live = step.live().to(subject.device)
    table = torch.cat([step.block_table, step.block_table]).clone()
    table[1, ::2], table[1, 1::2] = -1, 2**30
    calibration = type("Kept", (), {name: getattr(wanted, name) for name in {*CONSTANTS} & {*wanted._fields}})
    if subject.sketched:
        calibration.balance = calibration.balance[:, : subject.head_dim // 2]
    summaries = subject.package.summarize_pages(
        step.k_cache, table, step.seq_lens.repeat(2), v_cache=step.v_cache, calibration=calibration
    )
    for name, x, y in zip(type(wanted)._fields, wanted, summaries, strict=True):
        if name in CONSTANTS:
            assert name == "margin" or torch.equal(x, y)
        elif name in by_token(subject):
            assert torch.equal(x.transpose(1, 2)[live], y.transpose(1, 2)[live])
        else:
            held = step.last_of_supers().to(subject.device) if name.startswith("super_") else live.any(1)
            assert torch.equal(x[held], y[held])
