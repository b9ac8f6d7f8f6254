"""Steps that keep the pages of an earlier one: the list moved on to the present lengths, and what a step makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.fx.experimental._config as shape_config
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import LONG, Case, Length, cases, examples
from torch._dynamo.testing import CompileCounterWithBackend

from .conftest import HAS_GPU, on_device
from .properties import more_arguments
from .subject import NO_PAGE, Step, Subject, make_step
from .test_torch_ops import clean_step


@dataclass(frozen=True)
class Row:
    """A sequence when it was routed (pages, tokens of its last one; -1 pages: never) and the tokens it has more, or less, now."""

    pages: int
    last: int
    growth: int
    seed: int = 0


def rows() -> st.SearchStrategy[Row]:
    growth = st.one_of(
        st.integers(0, 2), st.sampled_from([15, 16, 17, 31, 32, 33]), st.integers(0, 3000), st.integers(-600, -1)
    )
    return st.builds(Row, st.integers(-1, 30), st.integers(1, 32), growth, st.integers(0, 99))


def a_routing(subject: Subject, state: list[Row]) -> tuple:
    """(a routing whose lists have the form that select_pages gives, seq_lens int32 [batch])."""
    package, spec, size = subject.package, subject.spec["routing"], subject.page_size
    routing, lens = package.new_routing(len(state)), []
    for b, row in enumerate(state):
        held = max(row.pages, 0)
        routed = held * size - (size - min(row.last, size)) if held else 0
        lens.append(max(0, routed + row.growth))
        routing.seq_lens[b] = routed if row.pages >= 0 else -1
        if row.pages < 0:
            continue
        for h in range(subject.kv_heads):
            always = {*range(min(held, spec["sink_pages"])), *range(max(0, held - spec["recent_pages"]), held)}
            rest = torch.randperm(held, generator=torch.Generator().manual_seed(row.seed + h)).tolist()
            pages = [*sorted(always), *(p for p in rest if p not in always)][: spec["pages"]]
            routing.pages[b, h, : len(pages)] = torch.tensor(sorted(pages), dtype=torch.int32)
    routing.routed = True
    place = lambda x: x.to(subject.device)
    placed = package.Routing(place(routing.pages), place(routing.seq_lens), True)
    return placed, place(torch.tensor(lens, dtype=torch.int32))


@examples(200)
@given(
    state=st.lists(rows(), min_size=1, max_size=3),
    pins=st.lists(st.one_of(st.integers(-1, 12), st.integers(0, 200)), max_size=9),
    narrow=st.booleans(),
)
@example(state=[Row(20, 3, 16), Row(20, 16, 1), Row(0, 1, 500)], pins=[], narrow=False)
@example(state=[Row(20, 3, 16)], pins=[4, 4, 18, 17, 3, 99, 2, 1, 5], narrow=False)
@example(state=[Row(20, 3, 3000), Row(20, 3, -17)], pins=[6], narrow=True)
def test_renewed_pages(refreshing, state, pins, narrow):
    """The kernel's list is the reference's, and obeys the rules that the op states."""
    routing, lens = a_routing(refreshing, state)
    size, spec, top = refreshing.page_size, refreshing.spec["routing"], refreshing.routed_pages
    width = max(1, -(-int(lens.max()) // size) + (-2 if narrow else 3))
    table = torch.full((len(state), width), NO_PAGE, dtype=torch.int32, device=refreshing.device)
    pinned = torch.tensor([pins] * len(state), dtype=torch.int32, device=refreshing.device).view(len(state), len(pins))
    before = routing.pages.clone(), routing.seq_lens.clone()
    renewed = refreshing.package.renew_pages(routing, table, lens, pinned_pages=pinned).cpu()
    assert torch.equal(routing.pages, before[0]) and torch.equal(routing.seq_lens, before[1]), "the state was changed"
    host = refreshing.package.Routing(routing.pages.cpu(), routing.seq_lens.cpu(), True)
    wanted = refreshing.package.reference.renew_pages(host, table.cpu(), lens.cpu(), pinned_pages=pinned.cpu())
    assert torch.equal(renewed, wanted)
    for b in range(len(state)):
        length, routed = int(lens[b]), int(routing.seq_lens[b])
        n = min(-(-length // size), width)
        keeps = 0 <= routed <= min(length, n * size)
        for h in range(refreshing.kv_heads):
            pages = renewed[b, h].tolist()
            count = min(n, top)
            assert pages[count:] == [-1] * (top - count)
            found = set(pages[:count])
            assert pages[:count] == sorted(found) and len(found) == count and all(0 <= p < n for p in found)
            always = {*range(min(n, spec["sink_pages"])), *range(max(0, n - spec["recent_pages"]), n)}
            room = top - spec["sink_pages"] - spec["recent_pages"]
            kept_pins = sorted(set(pins) & set(range(n)) - always)[:room]
            held = {p for p in routing.pages[b, h].tolist() if p >= 0} if keeps else set()
            begun = set(range(-(-routed // size) if keeps else 0, n))
            assert always <= found, "a sink or recent page is missing"
            assert set(kept_pins) <= found or n <= top, "a pinned page is missing"
            missing = begun - found
            assert not missing or not (held - begun - always - set(kept_pins)) & found, "an old page in a new one's place"
            others = (held | begun) - always - set(kept_pins)
            assert max(others - found, default=-1) < min(others & found, default=n), "not the earliest is dropped"
            assert found <= always | set(kept_pins) | held | begun or n <= top


def grown(subject: Subject, case: Case, growth: int) -> tuple[Step, torch.Tensor, object]:
    """(a step without NaN, lengths `growth` tokens shorter, the summaries as they were then)."""
    step = make_step(subject, case)
    step = Step(**{**vars(step), **{name: getattr(step, name).nan_to_num() for name in ("k_cache", "v_cache")}})
    step.block_table[step.block_table == NO_PAGE] = 0
    before = (step.seq_lens - growth).clamp(min=0)
    calibration = subject.package.calibration(0, subject.device) if subject.certificate == "calibrated" else None
    summaries = subject.package.summarize_pages(
        step.k_cache, step.block_table, before, v_cache=step.v_cache, calibration=calibration
    )
    return step, before, summaries


@examples(10)
@given(case=cases(families=("normal", "peaked", "duplicates")), growth=st.integers(0, 40), pins=st.integers(0, 2))
@example(case=Case((LONG, Length(tokens=3), Length(eighths=8, tokens=1))), growth=1, pins=0)
@example(case=Case((LONG, LONG)), growth=0, pins=1)
def test_a_step_that_routes_and_one_that_keeps(refreshing, case, growth, pins):
    """The first is `decode` without a routing, the second `decode` of the renewed pages; without growth they are one."""
    package = refreshing.package
    step, before, summaries = grown(refreshing, case, growth)
    given = more_arguments(step, None, pins)
    routing = package.new_routing(len(step.lengths), refreshing.device)
    plain = step.decode(summaries, seq_lens=before, **given)
    first = step.decode(summaries, seq_lens=before, routing=routing, step=0, **given)
    same(first, plain)
    chosen = package.select_pages(step.q, summaries, step.block_table, before, **given)
    assert torch.equal(routing.pages, chosen) and torch.equal(routing.seq_lens, before) and routing.routed
    package.update_summaries(summaries, step.k_cache, step.block_table, before, step.seq_lens, v_cache=step.v_cache)
    q = -step.q if growth else step.q  # a query that would choose other pages
    renewed = package.renew_pages(routing, step.block_table, step.seq_lens, **given)
    kept = step.decode(summaries, q=q, routing=routing, step=1, **given)
    assert torch.equal(routing.pages, chosen) and torch.equal(routing.seq_lens, before), "a step that keeps writes nothing"
    whole = step.block_table.shape[1] * refreshing.page_size <= refreshing.part("op").ALWAYS_DENSE
    if whole:
        same(kept, step.decode_dense(q=q))
    if refreshing.exact or not whole:  # a GPU reads the whole in splits of its own
        same(kept, step.decode(summaries, q=q, selected_pages=renewed, **given))
    if not growth and pins_are_there(chosen, before, given, refreshing.page_size):
        assert torch.equal(renewed, chosen)
        if refreshing.spec["fallback"] != "expand":
            same(kept, plain)
    again = step.decode(summaries, q=q, routing=routing, step=refreshing.spec["routing"]["refresh"], **given)
    assert torch.equal(routing.seq_lens, step.seq_lens)
    assert torch.equal(routing.pages, package.select_pages(q, summaries, step.block_table, step.seq_lens, **given))
    same(again, step.decode(summaries, q=q, **given))


def pins_are_there(chosen: torch.Tensor, seq_lens: torch.Tensor, given: dict, page_size: int) -> bool:
    """Whether routing had room for every pinned page: of two levels the beam may lack the super-page of one."""
    if given.get("pinned_pages") is None:
        return True
    pins, held = given["pinned_pages"][:, None, :, None], (seq_lens + page_size - 1) // page_size
    there = (pins == chosen[:, :, None]).any(-1) | (pins[..., 0] < 0) | (pins[..., 0] >= held[:, None, None])
    return bool(there.all())


def same(found: tuple, wanted: tuple) -> None:
    """To the bit."""
    for x, y in zip(found, wanted, strict=True):
        assert torch.equal(x, y)


def test_certificates_of_kept_pages(refreshing):
    """They speak of the tokens that the kept pages leave out: those of a call that is given the pages."""
    if refreshing.certificate == "none":
        return
    step, before, summaries = grown(refreshing, Case((LONG, LONG, Length(tokens=5))), 3)
    package, routing = refreshing.package, refreshing.package.new_routing(3, refreshing.device)
    step.decode(summaries, seq_lens=before, routing=routing, step=0)
    package.update_summaries(summaries, step.k_cache, step.block_table, before, step.seq_lens, v_cache=step.v_cache)
    renewed = package.renew_pages(routing, step.block_table, step.seq_lens)
    found = step.certify(summaries, routing=routing, step=1)
    wanted = step.certify(summaries, selected_pages=renewed)
    same([x.nan_to_num() for x in found], [x.nan_to_num() for x in wanted])
    same([x.isnan() for x in found], [x.isnan() for x in wanted])


def test_the_reference_keeps_the_same_pages(refreshing):
    step, before, summaries = grown(refreshing, Case((LONG, Length(eighths=12)), seed=3), 2)
    package, reference = refreshing.package, refreshing.package.reference
    routing, own = package.new_routing(2, refreshing.device), reference.new_routing(2)
    host = lambda x: x.cpu().double() if x.is_floating_point() else x.cpu()
    tensors = [host(getattr(step, name)) for name in ("q", "k_cache", "v_cache", "block_table")]
    kept = lambda: type(summaries)(*map(host, summaries))
    step.decode(summaries, seq_lens=before, routing=routing, step=0)
    reference.decode(*tensors, before.cpu(), kept(), routing=own, step=5)  # holds nothing, so it routes
    assert own.routed and torch.equal(own.pages, routing.pages.cpu()) and torch.equal(own.seq_lens, before.cpu())
    package.update_summaries(summaries, step.k_cache, step.block_table, before, step.seq_lens, v_cache=step.v_cache)
    found = step.decode(summaries, q=-step.q, routing=routing, step=1)[0].cpu().double()
    tensors[0] = -tensors[0]
    wanted = reference.decode(*tensors, step.seq_lens.cpu(), kept(), routing=own, step=1)[0]
    tolerance = 2e-2 if refreshing.device.type == "cuda" else 1e-4
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
    assert torch.equal(own.pages, routing.pages.cpu()) and torch.equal(own.seq_lens, before.cpu())
    again = reference.decode(*tensors, step.seq_lens.cpu(), kept(), routing=own, step=16 * refreshing.page_size)[0]
    plain = reference.decode(*tensors, step.seq_lens.cpu(), kept())[0]
    assert torch.equal(again, plain) and torch.equal(own.seq_lens, step.seq_lens.cpu())


def test_a_state_that_holds_nothing_is_routed(refreshing):
    """Whatever the number of the step; and after `forget()`."""
    step, _, summaries = grown(refreshing, Case((LONG, LONG)), 0)
    routing = refreshing.package.new_routing(2, refreshing.device)
    assert not routing.routed and (routing.pages == -1).all() and (routing.seq_lens == -1).all()
    for _ in range(2):
        step.decode(summaries, routing=routing, step=1)
        assert torch.equal(routing.pages, step.select_pages(summaries)) and torch.equal(routing.seq_lens, step.seq_lens)
        routing.forget()
        assert not routing.routed


def test_rows_that_are_forgotten_read_the_newest(refreshing):
    step, _, summaries = grown(refreshing, Case((LONG, LONG)), 0)
    package, sinks = refreshing.package, refreshing.spec["routing"]["sink_pages"]
    routing = package.new_routing(2, refreshing.device)
    step.decode(summaries, routing=routing, step=0)
    routing.forget([1])
    renewed = package.renew_pages(routing, step.block_table, step.seq_lens)
    n = -(-step.lengths[1] // refreshing.page_size)
    newest = [*range(sinks), *range(n - refreshing.routed_pages + sinks, n)]
    assert renewed[1].tolist() == [newest] * refreshing.kv_heads
    assert torch.equal(renewed[0], step.select_pages(summaries)[0])
    same(step.decode(summaries, routing=routing, step=1), step.decode(summaries, selected_pages=renewed))


def test_a_step_that_reads_all(refreshing):
    """Where the table holds no more than is kept anyway the state is every page; where reading all is faster, none."""
    package, size = refreshing.package, refreshing.page_size
    step, _, summaries = grown(refreshing, Case((LONG, Length(tokens=9))), 0)
    routing = package.new_routing(2, refreshing.device)
    within = package.op.ALWAYS_DENSE // size
    if within > 1:  # a mass may drop tokens of the shortest sequence
        short = torch.tensor([within * size - 1, 9], dtype=torch.int32, device=refreshing.device)
        narrow = {"seq_lens": short, "block_table": step.block_table[:, :within].contiguous()}
        same(step.decode(summaries, routing=routing, step=0, **narrow), step.decode_dense(**narrow)[:2])
        assert routing.routed and torch.equal(routing.seq_lens, short)
        pages = lambda n: [*range(n), *[-1] * (refreshing.routed_pages - n)]
        assert routing.pages.tolist() == [[pages(n)] * refreshing.kv_heads for n in (within, 1)]
        longer = {"seq_lens": short + 1, "block_table": step.block_table}
        renewed = package.renew_pages(routing, step.block_table, short + 1)
        kept = step.decode(summaries, routing=routing, step=1, **longer)
        same(kept, step.decode(summaries, selected_pages=renewed, **longer))
    with package.op.tuning.changed(dense_up_to=((1, 10**6),)):
        same(step.decode(summaries, routing=routing, step=0), step.decode_dense())
        assert not routing.routed
        if refreshing.certificate != "none":
            step.certify(summaries, routing=routing, step=0)
            assert not routing.routed
            assert routing.seq_lens.tolist() == [-1, 9], "a row of more than P pages holds nothing"
    step.decode(summaries, routing=routing, step=1)
    assert routing.routed and torch.equal(routing.pages, step.select_pages(summaries))


def test_an_empty_batch(refreshing):
    step, _, summaries = grown(refreshing, Case((LONG,)), 0)
    none = {name: getattr(step, name)[:0] for name in ("q", "block_table", "seq_lens")}
    routing = refreshing.package.new_routing(0, refreshing.device)
    for number in range(2):
        assert step.decode(summaries, routing=routing, step=number, **none)[0].shape[0] == 0
    assert refreshing.package.renew_pages(routing, none["block_table"], none["seq_lens"]).shape[0] == 0


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"step": None}, TypeError, "step must be an int"),
        ({"step": True}, TypeError, "step must be an int"),
        ({"step": 1.0}, TypeError, "step must be an int"),
        ({"step": -1}, ValueError, "step is -1"),
        ({"step": 0, "routing": "pages"}, TypeError, "what new_routing gives"),
        ({"step": 0, "routing": 3}, ValueError, r"new_routing\(2, device\)"),
        ({"step": 0, "selected_pages": True}, ValueError, "both say which pages"),
    ],
)
def test_arguments(packages, given, error, words):
    subject = on_device(packages("hd48_group5"), "cpu")
    step, _, summaries = grown(subject, Case((LONG, LONG)), 0)
    given = {"routing": 2, **given}
    if isinstance(given["routing"], int):
        given["routing"] = subject.package.new_routing(given["routing"])
    if "selected_pages" in given:
        given["selected_pages"] = step.select_pages(summaries)
    with pytest.raises(error, match=words):
        step.decode(summaries, **given)
    if not isinstance(given["routing"], str):
        assert not given["routing"].routed, "nothing was routed"


@shape_config.patch(use_duck_shape=False)
@pytest.mark.filterwarnings("error")
def test_compiles_one_program_for_each_kind_of_step(packages):
    """fullgraph; a step that routes and one that keeps its pages, whatever its number, the batch and the lengths."""
    subject = on_device(packages("hd48_group5"), "cpu")
    package = subject.package

    def step_function(pages, lens, number, q, k_cache, v_cache, block_table, seq_lens, *summaries):
        routing = package.Routing(pages, lens, True)
        tensors = (q * 1.0, k_cache, v_cache, block_table, seq_lens, package.Summaries(*summaries))
        return package.decode(*tensors, routing=routing, step=number)[0] + 1

    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(step_function, fullgraph=True, dynamic=True, backend=counter)
    for number, lengths in enumerate([(12, 4), (3, 20, 9), (16, 2, 2, 2, 11), (24, 30)]):
        step = clean_step(subject, number, tuple(Length(eighths=n, tokens=1) for n in lengths))
        summaries = package.summarize_pages(step.k_cache, step.block_table, step.seq_lens)
        tensors = (step.q, step.k_cache, step.v_cache, step.block_table, step.seq_lens, *summaries)
        states = [package.new_routing(len(lengths)) for _ in "ab"]
        for at in (16 * number, 16 * number + 3, 16 * number + 5):
            found, wanted = (f(x.pages, x.seq_lens, at, *tensors) for f, x in zip((compiled, step_function), states, strict=True))
            assert torch.equal(found, wanted)
            assert torch.equal(states[0].pages, states[1].pages) and torch.equal(states[0].seq_lens, states[1].seq_lens)
    assert counter.frame_count == 2
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["hd48_group5", "hd64_two_levels", "hd96_sketch2_mass", "hd64_sketch8_dense"])
def test_two_cuda_graphs(packages, name):
    """One of a step that routes and one of a step that keeps its pages: replays follow the lengths and the state."""
    subject = on_device(packages(name), "cuda")
    package, step_count = subject.package, subject.spec["routing"]["refresh"]
    step, before, summaries = grown(subject, Case((LONG, LONG, Length(tokens=40)), seed=5), 2 * subject.page_size)
    routing = package.new_routing(3, subject.device)
    held = before.clone()
    call = lambda number: step.decode(summaries, seq_lens=held, routing=routing, step=number)
    package.update_summaries(summaries, step.k_cache, step.block_table, before, step.seq_lens, v_cache=step.v_cache)
    call(0), call(1)
    graphs, results = [], []
    for number in (0, 1):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results.append(call(number))
        graphs.append(graph)
    for number in range(2 * step_count):
        held.copy_(torch.minimum(before + number, step.seq_lens))
        which = 0 if number % step_count == 0 else 1
        graphs[which].replay()
        if which == 0:
            wanted = step.decode(summaries, seq_lens=held)
            assert torch.equal(routing.seq_lens, held)
        else:
            renewed = package.renew_pages(routing, step.block_table, held)
            wanted = step.decode(summaries, seq_lens=held, selected_pages=renewed)
        same(results[which], wanted)
