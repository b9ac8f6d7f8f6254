"""What must not change a result: where pages lie, what else is in the batch, how a cache is strided."""

import pytest
import torch
from hypothesis import example, given
from strategies import EMPTY, LONG, ONE, Case, cases, examples

from .properties import check_physical_pages, check_rows_alone
from .subject import NAN, Step, make_step

LAYOUTS = ("halves", "interleaved", "offset")


@examples(6)
@given(case=cases())
@example(case=Case((EMPTY, LONG)))
def test_physical_pages(subject, case):
    check_physical_pages(subject, case)


@examples(6)
@given(case=cases(min_batch=2, max_batch=4))
@example(case=Case((LONG, EMPTY, ONE, LONG)))
def test_rows_do_not_influence_each_other(subject, case):
    check_rows_alone(subject, case)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads(subject, threads):
    """Any number of threads gives the same bits."""
    step = make_step(subject, Case((LONG, ONE, LONG), seed=2))
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            summaries = step.summarize()
            results.append((step.select_pages(summaries), *step.decode(summaries), *step.decode_dense()))
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, *results))


def strided(x: torch.Tensor, y: torch.Tensor, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two caches as views of one tensor: [2, pages, ...], [pages, 2, ...], or pages with room before and between."""
    if how == "halves":
        return torch.stack([x, y]).unbind(0)
    if how == "interleaved":
        return torch.stack([x, y], 1).unbind(1)
    wide = torch.full((2, x.shape[0] + 1, 3, *x.shape[1:]), NAN, dtype=x.dtype, device=x.device)
    wide[0, 1:, 1], wide[1, 1:, 2] = x, y
    return wide[0, 1:, 1], wide[1, 1:, 2]


@pytest.mark.parametrize("how", LAYOUTS)
def test_strided_caches(subject, how):
    step = make_step(subject, Case((LONG, ONE, LONG), seed=3))
    summaries = step.summarize()
    wanted = *summaries, *step.decode(summaries), *step.decode_dense()
    k_cache, v_cache = strided(step.k_cache, step.v_cache, how)
    assert how == "halves" or not k_cache.is_contiguous()
    other = Step(**{**vars(step), "k_cache": k_cache, "v_cache": v_cache})
    summaries = other.summarize()
    got = *summaries, *other.decode(summaries), *other.decode_dense()
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(wanted, got, strict=True))


@pytest.mark.xdist_group("tiny")
def test_strided_caches_are_not_copied(tiny):
    """A decode step allocates less than a cache, however it is strided."""
    step = make_step(tiny, Case((ONE,)))
    many = torch.zeros(4096, *step.k_cache.shape[1:])
    many[: len(step.k_cache)] = step.k_cache
    k_cache, v_cache = strided(many, many, "interleaved")
    step = Step(**{**vars(step), "k_cache": k_cache, "v_cache": v_cache})
    summaries = tiny.package.summarize_pages(k_cache, step.block_table, step.seq_lens)
    limit = k_cache.numel() * k_cache.element_size() // 4
    for call in (
        lambda: step.decode(summaries),
        step.decode_dense,
        lambda: tiny.package.update_summaries(summaries, k_cache, step.block_table, step.seq_lens * 0, step.seq_lens),
    ):
        with torch.profiler.profile(profile_memory=True) as profile:
            call()
        assert max(event.self_cpu_memory_usage for event in profile.events()) < limit
