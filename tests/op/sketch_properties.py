"""What key sketches hold: codes near y = R (b (k - c)), and residuals that bound ||y - y^|| from above, not by much."""

from __future__ import annotations

import torch
from assertions import U, capped, residual_slack, sketch_dot_error

from .subject import Step, arithmetic_of, make_step

CODE_MAX = {2: 1.5, 4: 7.5, 8: 127.0}


def sketch_of(step: Step, summaries, b: int, h: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(decoded sketches y^ [n, d], residuals [n], scales [n, d]) of one row in float64, from the kernel's summaries."""
    reference, n = step.subject.package.reference, step.lengths[b]
    summaries = type(summaries)(*(x.cpu() for x in summaries))
    pages = torch.tensor(step.pages()[b], dtype=torch.long)
    values = reference.sketch_values(summaries, pages)[:, h].double().flatten(0, 1)[:n]
    scales = summaries.sketch_scales[pages, h].double()
    if step.subject.spec["sketch"].get("transform") == "hadamard":
        scales = scales.flatten()[:n, None].expand_as(values)
    else:
        scales = scales.repeat_interleave(step.subject.page_size, 0)[:n]
    return values, summaries.sketch_residuals[pages, h].double().flatten()[:n], scales


def coordinates(step: Step, summaries, h: int, x: torch.Tensor, of_query: bool = False) -> torch.Tensor:
    """R (b (k - c)) of keys, or R (q / b) of queries, [n, d] in float64."""
    center, balance = (getattr(summaries, name)[h].cpu().double() for name in ("center", "balance"))
    return step.subject.package.reference.rotate(x / balance if of_query else (x - center) * balance)


def sketch_logits(step: Step, summaries, b: int, h: int, q: torch.Tensor):
    """(logits by sketches [g, n], bound on a kernel's error, how far the exact logit may be above) for q [g, d]."""
    spec = step.subject.spec
    scale = spec["model"]["sm_scale"] / spec["attention"]["epsilon"]
    values, residuals, _ = sketch_of(step, summaries, b, h)
    center, prepared = summaries.center[h].cpu().double(), coordinates(step, summaries, h, q, of_query=True)
    dots = (q @ center)[:, None] + prepared @ values.T
    error = scale * sketch_dot_error(q, center, prepared, values, arithmetic_of(step.subject))
    logits = capped(spec, spec["model"]["sm_scale"] * dots) / spec["attention"]["epsilon"]
    if spec["model"]["logits_soft_cap"] is not None:
        error = error + 10 * U * logits.abs()
    return logits, error + 2 * U * logits.abs(), scale * prepared.norm(dim=-1)[:, None] * residuals


def check_sketches(subject, case, calibrated: bool = False) -> None:
    """Residuals bound ||y - y^|| for every token and are not much larger; codes lie within half a step of y."""
    step = make_step(subject, case)
    if calibrated:
        step.calibration = subject.calibration(torch.Generator().manual_seed(case.seed))
    summaries = step.summarize()
    if calibrated:
        assert torch.equal(summaries.center.cpu(), step.calibration.center)
        assert torch.equal(summaries.balance.cpu(), step.calibration.balance.repeat(1, 2))
    bits, arithmetic = subject.spec["sketch"]["bits"], arithmetic_of(subject)
    stored = torch.finfo(subject.dtype).eps / 2
    near, far = residual_slack(subject.dtype, arithmetic, subject.head_dim)
    least = 2.0**-23 if subject.spec["model"]["dtype"] == "float16" else 2.0**-120  # half its smallest number is added
    for b, h, _, keys, _ in step.rows:
        if not len(keys):
            continue
        where = f"row {b}, KV head {h}"
        y = coordinates(step, summaries, h, keys)
        values, residuals, scales = sketch_of(step, summaries, b, h)
        error, length = (y - values).norm(dim=-1), y.norm(dim=-1)
        # y is itself rounded by the kernel: what a dot product with it is off by is part of rho
        assert (residuals >= error).all(), f"{where}: a residual is below the sketch's error"
        assert (residuals <= (1 + near) * error + far * length + least).all(), f"{where}: a residual is far too large"
        rounding = 8 * (subject.head_dim**0.5 + 4) * U * length[:, None]
        span = y.abs() if subject.spec["sketch"].get("transform") == "hadamard" else None
        searched = hasattr(subject.part("reference"), "_least_error")
        if bits != 2:
            # a stored scale that is denormal, or 0, is off by up to half the smallest number: what is rounded or clipped to
            # CODE_MAX of it is off by CODE_MAX times that
            off = torch.finfo(subject.dtype).tiny * torch.finfo(subject.dtype).eps / 2
            reach = scales * (0.5 + 2 * stored * CODE_MAX[bits]) + CODE_MAX[bits] * off + rounding + least
            if searched:  # a smaller scale may do better although it clips
                reach = torch.maximum(reach, y.abs() - CODE_MAX[bits] * scales * (1 - 2 * stored) + rounding + least)
            assert ((y - values).abs() <= reach).all(), f"{where}: a code is not the nearest"
        if span is not None:
            size = span.square().mean(-1).sqrt() if bits == 2 else span.amax(-1) / CODE_MAX[bits]
            loose = (2 * stored + 64 * U) * size + rounding[:, 0] + least
            assert ((scales[:, 0] - size).abs() <= loose).all(), f"{where}: a token's scale"
            continue
        for p, part in enumerate(y.split(subject.page_size)):
            size = part.square().mean(0).sqrt() if bits == 2 else part.abs().amax(0) / CODE_MAX[bits]
            # y is rounded relative to k, c and their difference's size
            loose = (2 * stored + 64 * U) * size + least
            scale = scales[p * subject.page_size]
            if searched and len(part) == subject.page_size:
                check_searched(part, scale, size, stored, loose, f"{where}: scales of page {p}")
            else:
                assert ((scale - size).abs() <= loose).all(), f"{where}: scales of page {p}"


def check_searched(part: torch.Tensor, scale: torch.Tensor, size: torch.Tensor, stored: float, loose, where: str) -> None:
    """No scale of sixteen misses the page's tokens by much less: part [tokens, d], scale [d]."""
    most = CODE_MAX[4]

    def miss(scale: torch.Tensor) -> torch.Tensor:
        codes = torch.where(scale > 0, part / scale, 0.0)
        codes = ((codes + most + 0.5).floor() - most).clamp(-most, most)
        return (part - codes * scale).norm(dim=0)

    trials = size * (0.64 + 0.04 * torch.arange(16))[:, None]
    # scales are rounded as they are stored: that moves every decoded code by as much, relative to the largest
    least = torch.stack([miss(trial) for trial in trials]).amin(0)
    assert (miss(scale) <= least * (1 + 2.0**-10) + 4 * len(part) ** 0.5 * most * (loose + 2 * stored * size)).all(), where
