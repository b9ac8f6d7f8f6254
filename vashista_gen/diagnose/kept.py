"""What a spec's own op keeps of the softmax, and whether its certificate tells the truth about the rest."""

from __future__ import annotations

from typing import Any

import torch

from vashista_gen.diagnose.layer import Layer
from vashista_gen.errors import UsageError
from vashista_gen.runtime import PagedCache


class Step:
    """One decode step of a generated package for every query of a layer.

    The document lies in one paged cache; row i of the batch is query i, with the same pages and a length of its own.
    Queries at page ends, so that no summary holds a later token than its row may see; `anywhere` allows others, whose
    last page is read all the same (rule R22) and whose bounds its later tokens can only widen. A package with a
    calibration file gets its layer's; one without it centres sketches on the mean over the whole document.
    """

    def __init__(self, package: Any, layer: Layer, *, anywhere: bool = False) -> None:
        check_fits(package, layer)
        self.package, self.layer = package, layer
        page_size = package.SPEC["cache"]["page_size"]
        if not anywhere and bool(((layer.positions + 1) % page_size).any()):
            raise UsageError(
                f"queries at {layer.positions.tolist()[:3]}... are not at the ends of pages of {page_size} tokens",
                "choose positions p with (p + 1) a multiple of the page size",
            )
        calibration = package.calibration(layer.number) if hasattr(package, "calibration") else None
        cache = PagedCache(package, -(-layer.k.shape[1] // page_size), calibration=calibration)
        cache.append(layer.k.transpose(0, 1)[None], layer.v.transpose(0, 1)[None])
        count = len(layer.positions)
        self.summaries = cache.summaries
        self.table = cache.block_table.expand(count, -1).contiguous()
        self.lens = (layer.positions + 1).to(torch.int32)
        self.q = layer.q.transpose(0, 1).contiguous()  # [queries, heads, d]
        self.tensors = (self.q, cache.k_cache, cache.v_cache, self.table, self.lens)

    def decode(self, **options: Any) -> tuple:
        """The package's `decode` over all rows."""
        return self.package.decode(*self.tensors, self.summaries, **options)

    def kept_mass(self, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """1 - delta of each head and query, float64 [heads, queries]: exp(lse of the kept logits - lse of all).

        tokens: bool [kv heads, tokens]; the pages that hold them are pinned, for all heads.
        """
        _, lse = self.decode() if tokens is None else self.decode(pinned_pages=self._pages_of(tokens))
        return (lse.T.double() - lse_of_all(self.layer)).exp().clamp(max=1)

    def _pages_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """int32 [queries, n], -1 where a query comes before the page."""
        page_size = self.package.SPEC["cache"]["page_size"]
        pages = torch.unique(tokens.any(0).nonzero().flatten() // page_size)
        seen = pages[None, :] * page_size <= self.layer.positions[:, None]
        return torch.where(seen, pages[None, :], -1).to(torch.int32)

    def support_gap(self) -> torch.Tensor:
        """min of the logits in the routed pages - max outside, nats, float64 [heads, queries]; inf if none is outside.

        Theory (J): delta <= 1 / (1 + k / (n - k) exp(gap)). A gap below 0 bounds little; it is the rule for pages.
        """
        gaps = []
        for head, inside in enumerate(self.routed()):
            logits = self.layer.log_weights(head).double()
            later = logits == float("-inf")
            lowest = logits.masked_fill(~inside | later, float("inf")).amin(-1)
            gaps.append(lowest - logits.masked_fill(inside, float("-inf")).amax(-1))
        return torch.cat(gaps)

    def routed(self) -> list[torch.Tensor]:
        """For each KV head, which tokens lie in the pages that the op routes to: bool [queries, tokens]."""
        pages = self.package.select_pages(self.q, self.summaries, self.table, self.lens)
        page_size = self.package.SPEC["cache"]["page_size"]
        masks = []
        for head in range(self.layer.k.shape[0]):
            inside = torch.zeros(len(self.lens), self.table.shape[1] + 1, dtype=torch.bool)
            inside.scatter_(1, pages[:, head].long() % inside.shape[1], True)  # -1, the padding, falls into the last
            masks.append(inside[:, :-1].repeat_interleave(page_size, dim=1)[:, : self.layer.k.shape[1]])
        return masks

    def certificate(self) -> dict[str, torch.Tensor]:
        """The step's certificate against the truth; {} for a spec without one. Each [heads, queries].

        certified: bool; leakage: the certificate's delta; mass_omitted: the true delta; slack: log of the omitted mass
        as certified - log of the true one, nats (below 0: an estimate that is too low), NaN where nothing is omitted. The
        truth is a sum over the tokens that the step does not list, in float64.
        """
        if self.package.SPEC.get("certificate", {}).get("kind", "none") == "none":
            return {}
        _, _, certificate = self.decode(return_certificate=True)
        omitted, total = self._log_sums()
        return {
            "certified": certificate.certified.T.clone(),
            "leakage": certificate.leakage.T.double(),
            "mass_omitted": (omitted - total).exp(),
            "slack": torch.where(omitted > float("-inf"), certificate.log_omitted.T.double() - omitted, torch.nan),
        }

    def _log_sums(self) -> tuple[torch.Tensor, torch.Tensor]:
        """log sum of exp(s_j) over the tokens that the step does not list (-inf for none) and over all it sees.

        Both float64 [heads, queries]; logits and sums in float64.
        """
        q, k_cache, _, table, lens = self.tensors
        listed, bits, _ = self.package.select_tokens(q, k_cache, table, lens, self.summaries)
        bit = torch.arange(self.layer.group_size, dtype=torch.int32)[:, None, None]
        omitted, everything = [], []
        for head in range(self.layer.k.shape[0]):
            weights = self.layer.log_weights(head, torch.float64)  # [group, queries, tokens]
            everything.append(torch.logsumexp(weights, dim=-1))
            # -1, the padding, and tokens that another head keeps write the last column
            mine = ((bits[:, head] >> bit) & 1 == 1) & (listed[:, head] >= 0)
            weights = torch.nn.functional.pad(weights, (0, 1), value=float("-inf"))
            at = torch.where(mine, listed[:, head], weights.shape[-1] - 1).long()
            omitted.append(torch.logsumexp(weights.scatter_(-1, at, float("-inf")), dim=-1))
        return torch.cat(omitted), torch.cat(everything)


FLOOR = torch.tensor(1e-5, dtype=torch.float64).log().item()  # log delta below which float32 lse cannot tell it


def lse_of_all(layer: Layer) -> torch.Tensor:
    """log sum_j exp(s_j) over every token a query sees, float64 [heads, queries]."""
    heads = range(layer.k.shape[0])
    return torch.cat([torch.logsumexp(layer.log_weights(head).double(), dim=-1) for head in heads])


def log_omitted(lse_kept: torch.Tensor, lse_all: torch.Tensor) -> torch.Tensor:
    """log(exp(lse_all) - exp(lse_kept)), -inf where nothing is omitted; float64."""
    return lse_all + torch.log(-torch.expm1((lse_kept - lse_all).clamp(max=0)))


def check_fits(package: Any, layer: Layer) -> None:
    """UsageError unless the package was compiled for these heads, this head_dim and scale."""
    wanted = package.SPEC["model"]
    found = {
        "num_q_heads": layer.q.shape[0],
        "num_kv_heads": layer.k.shape[0],
        "head_dim": layer.q.shape[2],
        "sm_scale": layer.sm_scale,
    }
    differing = [
        f"{key} {value:g} against {wanted[key]:g}"
        for key, value in found.items()
        if abs(value - wanted[key]) > 1e-6 * abs(value)
    ]
    if wanted.get("logits_soft_cap") is not None:
        differing.append(f"logits_soft_cap none against {wanted['logits_soft_cap']:g}")
    if layer.v.shape[2] != wanted["head_dim"]:
        differing.append(f"head_dim of values {layer.v.shape[2]} against {wanted['head_dim']}")
    if differing:
        raise UsageError(
            f"the model and the spec {package.SPEC['name']} differ: {'; '.join(differing)}",
            "give a spec of the model's shape, or none: vashista-gen diagnose then suggests one",
        )
