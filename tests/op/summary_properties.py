"""What page summaries hold: the mean or the box of their tokens, rounded to the spec's bits."""

from __future__ import annotations

import torch
from assertions import U

from .subject import CONSTANTS, arithmetic_of, make_step, wide


def exact_rows(subject, keys, factor=1):
    """(rows [pages, heads, rows, d], rounding bound of a float32 mean) of a sequence's keys [n, heads, d], float64.

    factor: of entries of so many pages each instead of pages.
    """
    routing = subject.spec["routing"]
    pages = keys.split(factor * subject.page_size)
    if routing["summary"] == "box":
        rows = torch.stack([torch.stack([p.amin(0), p.amax(0)], 1) for p in pages])
        return rows, torch.zeros_like(rows)
    span = factor * routing.get("subpage", subject.page_size)
    rows = torch.zeros(len(pages), keys.shape[1], factor * subject.page_size // span, keys.shape[2], dtype=torch.float64)
    size = torch.zeros_like(rows)
    for i, page in enumerate(pages):
        for j, part in enumerate(page.split(span)):
            rows[i, :, j], size[i, :, j] = part.mean(0), part.abs().mean(0)
    return rows, (span + 2) * U * size


def assert_summaries(subject, summaries, step, unit):
    """Every page's summary is its tokens' mean or box, rounded to the spec's bits; `unit` of the cache's type."""
    _assert_level(subject, summaries, step, unit, 1)
    if subject.spec["routing"]["levels"] == 2:
        of_supers = subject.package.reference.super_summaries(summaries)
        _assert_level(subject, of_supers, step, unit, subject.spec["routing"]["super_pages"])


def _assert_level(subject, summaries, step, unit, factor):
    routing, exact = subject.spec["routing"], wide(summaries)
    for b, keys in enumerate(step.keys):
        held = len(keys) if factor == 1 else len(keys) // (factor * subject.page_size)
        if not held:
            continue
        pages = torch.tensor(step.pages()[b])
        if factor > 1:  # of whole ones, with their last page
            keys, pages = keys[: held * factor * subject.page_size], pages[factor - 1 : held * factor : factor]
        rows, error = exact_rows(subject, keys, factor)
        values = subject.package.reference.summary_values(exact, pages).double()
        if routing["summary_bits"] == 16:
            assert ((values - rows).abs() <= error + unit * rows.abs()).all()
            continue
        most = 2 ** (routing["summary_bits"] - 1) - 1
        scales, coded = exact.scales[pages][..., None, None], rows
        if "spread" in type(summaries)._fields:
            # codes are of (mean - c) / s: the difference and the quotient round once each
            spread, center = exact.spread[:, None], exact.center[:, None]
            coded = (rows - center) / spread
            error = error + 4 * U * (rows - center).abs()
        else:
            spread = torch.ones(())
        wanted = coded.abs().amax((2, 3), keepdim=True) / (most * (1 - 2**-7))
        slack = (error / spread).amax((2, 3), keepdim=True)
        assert ((scales - wanted).abs() <= slack + (4 * U + unit) * wanted).all(), "a scale is not max / code_max"
        if routing["summary"] == "box":
            low, high, step_size = rows[:, :, 0], rows[:, :, 1], scales[:, :, 0] * 1.001
            assert (values[:, :, 0] <= low).all() and (values[:, :, 1] >= high).all(), "a box is not rounded outward"
            assert (low - values[:, :, 0] <= step_size).all() and (values[:, :, 1] - high <= step_size).all()
        else:
            # half a code step; the quotient rounds, and a scale rounded down lets the largest row go past the last code
            assert ((values - rows).abs() <= spread * scales * (0.5 + 4 * U * most + 2**-6 * unit) + error).all()


def check_summaries(subject, case):
    """The kernel's summaries, and the reference's in float64, are what the spec says of every page in use."""
    step = make_step(subject, case)
    unit = 0.0 if arithmetic_of(subject).staged == 0 else torch.finfo(subject.dtype).eps / 2
    step.calibration = subject.calibration(torch.Generator().manual_seed(case.seed))
    summaries = step.summarize()
    bulk = subject.package.reference.summarize_pages(
        step.k_cache.cpu().double(), step.block_table.cpu(), step.seq_lens.cpu(),
        v_cache=step.v_cache.cpu().double(), calibration=step.calibration,
    )  # fmt: skip
    if subject.spec["routing"]["summary"] != "sketch":
        assert_summaries(subject, summaries, step, max(unit, U))
        assert_summaries(subject, bulk, step, U)
    if subject.certificate != "none":
        assert_radii(subject, summaries, step, least=1 - 2.0**-40)
        assert_radii(subject, bulk, step, least=1 - 2 * U)  # stored to nearest
    for name in set(CONSTANTS) & set(bulk._fields):
        assert torch.equal(getattr(bulk, name).float(), getattr(summaries, name).cpu()), name
    assert type(bulk)._fields == type(summaries)._fields
    assert [x.shape for x in bulk] == [x.shape for x in summaries]


def assert_radii(subject, summaries, step, least):
    """Each page's farthest value from the centre and longest key: at least `least` times it, and little more."""
    for b, (keys, values) in enumerate(zip(step.keys, step.values, strict=True)):
        if not len(keys):
            continue
        radii = summaries.radii.cpu().double()[step.pages()[b]]
        away = values - summaries.value_center.cpu().double()
        for side, x in enumerate((away, keys)):
            wanted = torch.stack([part.norm(dim=-1).amax(0) for part in x.split(subject.page_size)])
            slack = 16 * (subject.head_dim + 16) * U
            assert (radii[..., side] >= wanted * least).all(), "a radius is too small"
            assert (radii[..., side] <= wanted * (1 + slack) + 2.0**-120).all(), "a radius is far too large"
