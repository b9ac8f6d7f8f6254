"""Rounding bounds of the kernels, derived, and the assertions that use them. Everything here is float64 on the CPU.

Notation: u = unit roundoff, gamma(n) = n u / (1 - n u) bounds the relative error of n roundings (Higham, Lemma 3.1), in
whatever order a sum of n terms is taken.

Logits. dot = sum_d q_d k_d has error <= gamma(d) sum |q_d k_d|; scaling rounds the constant and the product:
    |s' - s| <= gamma(d + 2) A,  A = scale sum |q_d k_d|.       Soft cap: cap tanh(s / cap), whose slope is at most 1,
adds tanh's 4 ulp = 8 u, its factor and the product by the cap: + 10 u |s|.

Weights. A kernel computes w_j = exp(s'_j - m) and later factors exp(m_old - m_new), common to numerator and
denominator. exp is within 2 ulp = 4 u, the subtraction rounds its result, x log2(e) twice more where exp2 is used, so a
factor of argument x is off by exp(e), |e| <= 3 u |x| + 4 u. The arguments of token j add up to m - s_j, since the
running maximum only grows; with T tiles:
    w_j = exp(s_j - m + e_j),   |e_j| <= dl_j = gamma(d + 2) A_j + [10 u |s_j|] + 3 u (m - s_j) + 4 u (T + 1).
Below exp(-87) a weight is 0: an absolute error of 2^-125 on it.

Softmax under |e_j| <= dl_j. With p the exact weights and r = sum_j p_j (exp(dl_j) - 1):
    |p'_j - p_j| <= (p_j (exp(dl_j) - 1) + p_j r) / (1 - r) =: rel_j,    |lse' - lse| <= -log(1 - r)           (r < 1)
because p'_j / p_j = exp(e_j) / sum_i p_i exp(e_i), whose denominator is in [1 - r, 1 + r]. For large r (keys of norm
1e15) instead  p'_j <= exp(s_j + dl_j) / max_i exp(s_i - dl_i)  and  |lse' - lse| <= max_j dl_j.
Since both sum to 1:  |sum_j (p'_j - p_j) v_j| <= sum_j rel_j |v_j - o|, and at most max_j |v_j - o|.

Splits. The sequence is attended to in parts; part r's lse_r = log(sum) + max is rounded (u |lse_r|, log's 4 u log n)
and exp(lse_r - lse) is one more factor on its tokens. With s_j <= lse_r <= lse for its tokens that adds to dl_j
    u (max(|s_j|, |lse|) + 3 (lse - s_j) + 4 log(n + 1) + 8).

Accumulation of n terms over T tiles, each rescaled: gamma(n + 2 T + 8) on numerator and denominator, on sum p'|v|.
Tensor cores take the weights in the cache's type: a relative u_w each, or 2^-25 at the bottom of float16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

U = 2.0**-24  # unit roundoff of float32
TILE = 16  # the smallest tile of tokens
TINY = 2.0**-125


@dataclass(frozen=True)
class Arithmetic:
    """Roundings of one target.

    add     of one addition: u; tensor cores truncate and keep few guard bits: 4 u
    staged  of the attention weights and of summaries when they are cast to the cache's type; 0 where they are not
    least   half the smallest subnormal of that type, where it is not far below any bound: a cast errs by that at least
    out     of the output's type, beyond float32
    """

    add: float
    staged: float
    least: float
    out: float

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> Arithmetic:
        """The arithmetic of a package's kernels on a device."""
        unit = torch.finfo(dtype).eps / 2
        if device.type == "cpu" or dtype == torch.float32:
            return cls(U, 0.0, 0.0, 0.0)
        return cls(4 * U, unit, 2.0**-25 if dtype == torch.float16 else 0.0, unit)

    def gamma(self, n: float) -> float:
        """Relative error of n roundings."""
        return n * self.add / (1 - n * self.add)

    @property
    def floor(self) -> float:
        """How far below the largest logit a token's weight may come out as 0."""
        return 15.0 if self.least else 80.0


def logits_of(spec: dict, q: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(s / epsilon [g, n], A [g, n]) for queries [g, d] and keys [n, d], float64."""
    model, epsilon = spec["model"], spec["attention"]["epsilon"]
    logits, magnitudes = model["sm_scale"] * (q @ keys.T), model["sm_scale"] * (q.abs() @ keys.abs().T)
    return capped(spec, logits) / epsilon, magnitudes / epsilon


def capped(spec: dict, logits: torch.Tensor) -> torch.Tensor:
    """cap tanh(s / cap), or s where the spec has no cap."""
    cap = spec["model"]["logits_soft_cap"]
    return logits if cap is None else cap * torch.tanh(logits / cap)


def logit_error(spec: dict, logits: torch.Tensor, magnitudes: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    """Bound on the error of a kernel's logits."""
    error = arithmetic.gamma(spec["model"]["head_dim"] + 2) * magnitudes
    return error if spec["model"]["logits_soft_cap"] is None else error + 10 * U * logits.abs()


def weight_exponent_error(logits: torch.Tensor, error: torch.Tensor, tiles: int) -> torch.Tensor:
    """dl [g, n] of weights computed from logits that are off by `error`."""
    largest = logits.amax(-1, keepdim=True)
    return error + 3 * U * (largest - logits).nan_to_num(posinf=0.0) + 4 * U * (tiles + 1)


def weight_error(logits: torch.Tensor, dl: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(p, bound on |p' - p|, bound on |lse' - lse|) of softmax over the last axis, logits off by dl; -inf: no token."""
    log_p = torch.log_softmax(logits, -1)
    p = torch.exp(log_p)
    grown = torch.exp((log_p + dl).clamp(max=50.0)) - p
    r = grown.sum(-1, keepdim=True)
    lowest = (logits - dl).amax(-1, keepdim=True)
    coarse = torch.maximum(p, torch.exp((logits + dl - lowest).clamp(max=0.0)))
    fine = (grown + p * r) / (1 - r).clamp(min=0.5)
    error = torch.where(r < 0.5, torch.minimum(fine, coarse), coarse)
    kept = dl.masked_fill(logits == float("-inf"), 0.0)
    lse_error = torch.where(r < 0.5, -torch.log1p(-r.clamp(max=0.5)), kept.amax(-1, keepdim=True))
    return p, error, lse_error.squeeze(-1)


@dataclass(frozen=True)
class Attention:
    """Exact out [g, d] and lse [g], and how far a kernel's may be from them."""

    out: torch.Tensor
    lse: torch.Tensor
    weights: torch.Tensor
    out_error: torch.Tensor
    lse_error: torch.Tensor
    weights_error: torch.Tensor


def attention(
    spec: dict, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, arithmetic: Arithmetic, kept=None
) -> Attention:
    """Attention of queries [g, d] over keys and values [n, d], of which `kept` [g, n] count."""
    if not len(keys):
        zero = q.new_zeros
        lse = zero(len(q)) - float("inf")
        return Attention(torch.zeros_like(q), lse, zero(len(q), 0), torch.zeros_like(q), zero(len(q)), zero(len(q), 0))
    logits, magnitudes = logits_of(spec, q, keys)
    error = logit_error(spec, logits, magnitudes, arithmetic)
    if kept is not None:
        logits = logits.masked_fill(~kept, float("-inf"))
    tiles = -(-len(keys) // TILE)
    dl = weight_exponent_error(logits, error, tiles)
    return softmax_sum(logits, dl, values.expand(len(q), *values.shape), tiles, arithmetic)


def split_error(logits: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """What merging parts adds to dl."""
    logits = torch.where(logits == float("-inf"), lse, logits)
    mass = torch.log(torch.tensor(logits.shape[-1] + 1.0, dtype=logits.dtype))
    return U * (torch.maximum(logits.abs(), lse.abs()) + 3 * (lse - logits) + 4 * mass + 8)


def softmax_sum(logits, dl, values, tiles, arithmetic) -> Attention:
    """sum_j softmax(logits)_j values_j for logits [g, n] off by dl and values [g, n, d]."""
    n, lse = logits.shape[-1], torch.logsumexp(logits, -1)
    dl = dl + split_error(logits, lse[:, None])
    p, error, lse_error = weight_error(logits, dl)
    error = error + p * arithmetic.staged + (p > 0) * (arithmetic.least + TINY)
    weighted = lambda w, x: (w[:, None] @ x)[:, 0]
    out = weighted(p, values)
    spread = (values - out[:, None]).abs()
    farthest = spread.masked_fill(logits[..., None] == float("-inf"), 0.0).amax(1)
    # weights cast to a narrower type are not normalised again: their sum is off by as much as they are
    loose = weighted(p * arithmetic.staged + (p > 0) * arithmetic.least, values.abs())
    moved = torch.minimum(weighted(error, spread), farthest) + loose
    roundings = arithmetic.gamma(2 * (n + 2 * tiles + 8))
    out_error = moved + roundings * (weighted(p, values.abs()) + moved + out.abs())
    out_error = out_error + arithmetic.out * (out.abs() + out_error) + arithmetic.least
    mass = torch.log(torch.tensor(n + 1.0, dtype=lse.dtype))
    lse_error = lse_error + arithmetic.gamma(n + 2 * tiles + 8) + U * (4 * (mass + 1) + 2 * lse.abs()) + TINY * n
    # weights are read off as an output, with one-hot values: they are rounded to its type once more
    error = error + arithmetic.gamma(2 * (n + 2 * tiles + 8)) * p
    return Attention(out, lse, p, out_error, lse_error, error + arithmetic.out * (p + error) + arithmetic.least)


def assert_within(got: torch.Tensor, wanted: torch.Tensor, error: torch.Tensor, what: str) -> None:
    """|got - wanted| <= error everywhere; -inf only against -inf; nothing is NaN."""
    got = got.cpu().double()
    assert got.shape == wanted.shape, f"{what}: shape {list(got.shape)}, wanted {list(wanted.shape)}"
    assert not got.isnan().any(), f"{what}: NaN at {got.isnan().nonzero()[:4].tolist()}"
    far = ~((got == wanted) | ((got - wanted).abs() <= error))
    if far.any():
        at = tuple(far.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(far.sum())} of {far.numel()} off, first at {list(at)}: got {got[at]:.9g}, "
            f"wanted {wanted[at]:.9g}, difference {abs(got[at] - wanted[at]):.3g}, bound {error[at]:.3g}"
        )


def assert_ranked(chosen: torch.Tensor, score: torch.Tensor, error: torch.Tensor, what: str) -> None:
    """Every chosen entry's score is at least every other one's, up to the errors of both; all three 1-d."""
    if chosen.any() and not chosen.all():
        least, most = (score + error)[chosen].min(), (score - error)[~chosen].max()
        assert least >= most, f"{what}: one of score {least:.9g} at most was chosen over one of {most:.9g} at least"


def page_score_error(spec: dict, q: torch.Tensor, rows: torch.Tensor, sizes: torch.Tensor, scores, arithmetic):
    """Bound [g, pages] on the error of page scores from q [g, d], summary rows [pages, rows, d], tokens a row covers.

    Codes times scales round once (u), the corner queries (q -+ w |q|) / 2 of a box three times, the dots gamma(d), the
    scale twice; cast to the cache's type rows and corner queries round by `staged` once each. log sum_i size_i exp(s_i)
    moves no more than its farthest s_i, plus exp (4 u), its argument (3 u x exp(-x) <= 2 u a row), sum and log.
    """
    model, routing = spec["model"], spec["routing"]
    box = routing["summary"] == "box"
    scale = model["sm_scale"] / spec["attention"]["epsilon"]
    if box:
        w = routing["box_weight"]
        corners = torch.stack([q - w * q.abs(), q + w * q.abs()]).abs() / 2
        magnitudes = torch.einsum("rgd,prd->gp", corners, rows.abs())
        # q and w |q| may cancel: the three roundings are relative to them, not to their difference
        cancelled = 3 * U * (1 + w) / 2 * torch.einsum("gd,prd->gp", q.abs(), rows.abs())
        error = scale * ((arithmetic.gamma(2 * model["head_dim"] + 8) + 2 * arithmetic.staged) * magnitudes + cancelled)
    else:
        magnitudes = torch.einsum("gd,prd->gpr", q.abs(), rows.abs())
        magnitudes = magnitudes.masked_fill((sizes == 0)[None], 0.0).amax(-1)
        error = scale * (arithmetic.gamma(model["head_dim"] + 8) + arithmetic.staged) * magnitudes
    if model["logits_soft_cap"] is not None:
        error = error + 10 * U * model["logits_soft_cap"] / spec["attention"]["epsilon"]
    if routing["summary"] == "subpage_mean":
        log_tokens = torch.log(sizes.sum(-1).double() + 1)
        error = error + U * (12 + 4 * rows.shape[1] + 4 * log_tokens + 2 * scores.abs())
    return error


def sketch_dot_error(q: torch.Tensor, center: torch.Tensor, prepared: torch.Tensor, values: torch.Tensor, arithmetic):
    """Bound [g, n] on the error of <q, c> + <x, y^> from q [g, d], c [d], prepared x [g, d], sketches y^ [n, d].

    Preparing x takes a quotient, a factor and log2(d) sums of two terms, each relative to ||x|| (a rotation keeps
    norms), a division by its largest element and the product with it; both sides round once by `staged` where they are
    cast (elements of x are at most 1: in float16 by `least` at least). By Cauchy-Schwarz the terms of <x, y^> add up to
    no more than ||x|| ||y^||. The terms of <q, c> stand for themselves.
    """
    d = q.shape[-1]
    cast = 2 * arithmetic.staged + d**0.5 * arithmetic.least
    product = (arithmetic.gamma(d + 40) + cast) * prepared.norm(dim=-1)[:, None] * values.norm(dim=-1)
    return product + (d + 10) * 2 * U * (q.abs() @ center.abs())[:, None]


def token_page_score_error(dl: torch.Tensor, scores: torch.Tensor, page_size: int) -> torch.Tensor:
    """Bound [g, pages] on log sum exp of a page's logits, dl [g, pages] the largest error of one: page_score_error."""
    return dl + U * (12 + 4 * page_size + 4 * math.log(page_size + 1) + 2 * scores.abs())


def residual_slack(subject_dtype: torch.dtype, arithmetic, d: int) -> tuple[float, float]:
    """(relative to ||y - y^||, relative to ||y||) that a stored residual may exceed ||y - y^|| by.

    A norm is rounded outward by (d + 16) 2 u twice, what is stored by its type's rounding; rho ||y|| covers every
    rounding of a dot product with the sketch, sums of tensor cores with 4 u and a query cast once (2^-8 in bfloat16,
    and 2^-11 + sqrt(d) 2^-25 in float16).
    """
    stored = 0.0 if arithmetic.staged == 0 else 4 * torch.finfo(subject_dtype).eps
    norms, sums = 8 * (d + 16) * U + 2.0**-20, 8 * arithmetic.add * (d + 64)
    return stored + norms, stored + sums
