"""The figures of all layers, heads and queries, and their summary as plain numbers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from vashista_gen.diagnose import hull
from vashista_gen.diagnose.anchors import anchors
from vashista_gen.diagnose.kept import Step
from vashista_gen.diagnose.layer import Layer, context_of
from vashista_gen.diagnose.support import SHARES, effective_support, growth

SAFE_MASS, SAFE_QUERIES = 0.95, 0.9  # a head is safe if so much mass is kept for so many of its queries
SIZES = (64, 256, 1024)  # tokens: the classes of heads that are counted
CLEAR = 5 / 6  # of the tolerance: steps that omit at most so much are clearly within it
FLAT = 0.25  # a head whose support grows no faster than context^FLAT is called flat


class Findings:
    """Collects what `add` sees; `summary` is what diagnose.json holds.

    contexts: ascending; package: the spec's generated package, or None; budget: tokens of a list, the spec's own where
    there is one. Each layer is added once for each document, with the same positions.
    """

    def __init__(
        self, contexts: list[int], budget: int, package: Any = None, *, with_hull: bool = True, certificate: bool = False
    ) -> None:
        self.only_certificate = certificate
        self.contexts, self.budget, self.package, self.with_hull = sorted(contexts), budget, package, with_hull
        self._seen: dict[str, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
        self._contexts: dict[int, list[int]] = defaultdict(list)  # of each query of a layer, over all documents

    def add(self, layer: Layer) -> None:
        """Computes the figures of one layer over one document."""
        if self.only_certificate:
            self._note(layer, Step(self.package, layer, anywhere=True).certificate())
            return
        support = effective_support(layer, self.budget)
        found = {"each": support.each, "group": support.group, "oracle": support.kept}
        routed = None
        if self.package is not None:
            step = Step(self.package, layer)
            routed = step.routed()
            found |= {"kept": step.kept_mass(), "gap": step.support_gap()} | step.certificate()
        found_anchors = anchors(layer, routed)
        found |= {"anchors": found_anchors.tokens.sum(-1, keepdim=True), "anchor_mass": found_anchors.mass}
        if routed is not None:
            found |= {"anchor_mass_omitted": found_anchors.mass_omitted, "omitted": found_anchors.omitted}
            found["kept_pinned"] = step.kept_mass(found_anchors.tokens)
        if self.with_hull and layer.number not in self._seen["face"]:  # the first document alone: seconds for each head
            found["face"] = np.array(hull.faces(layer, len(layer.positions) - 1)).T[:, :, None]
        self._note(layer, found)

    def _note(self, layer: Layer, found: dict[str, Any]) -> None:
        for name, values in found.items():
            self._seen[name][layer.number].append(np.asarray(values))
        self._contexts[layer.number] += [context_of(int(p), self.contexts) for p in layer.positions]

    def of_last_document(self) -> dict[str, np.ndarray]:
        """What `add` noted last for each layer, by "figure layer", and the contexts of its queries."""
        last = {f"{name} {number}": held[-1] for name, seen in self._seen.items() for number, held in seen.items()}
        count = last[f"{next(iter(self._seen))} {self.layers[0]}"].shape[-1]
        return last | {"contexts": np.array(self._contexts[self.layers[0]][-count:])}

    def restore(self, figures: dict[str, np.ndarray]) -> None:
        """Adds a document as `of_last_document` gives it."""
        contexts = figures["contexts"].tolist()
        named = [(*key.split(" "), values) for key, values in figures.items() if key != "contexts"]
        for name, number, values in named:
            self._seen[name][int(number)].append(values)
        for number in {number for _, number, _ in named}:
            self._contexts[int(number)] += contexts

    @property
    def layers(self) -> list[int]:
        """Numbers of the layers seen, ascending."""
        return sorted(self._contexts)

    def array(self, name: str, context: int | None = None) -> np.ndarray:
        """[layers, (shares,) heads, samples] of one figure, of the queries of one context if one is given.

        Names: each, group, oracle, anchors, anchor_mass, face; with a package also kept, kept_pinned, gap,
        omitted and anchor_mass_omitted; with a certificate what Step.certificate gives.
        """
        rows = [np.concatenate(self._seen[name][number], axis=-1) for number in self.layers]
        whole = np.stack(rows)
        if context is None:
            return whole
        return whole[..., np.array(self._contexts[self.layers[0]]) == context]

    def has(self, name: str) -> bool:
        """Whether the figure was computed."""
        return bool(self._seen.get(name))

    def kept(self) -> np.ndarray:
        """Mass kept at the longest context [layers, heads, samples]: by the package, else by the oracle's list."""
        return self.array("kept" if self.package is not None else "oracle", self.contexts[-1])

    def safe(self) -> np.ndarray:
        """bool [layers, heads]: SAFE_MASS is kept for SAFE_QUERIES of the queries, at the longest context."""
        return (self.kept() >= SAFE_MASS).mean(-1) >= SAFE_QUERIES

    def medians(self, share: float) -> np.ndarray:
        """Median tokens to a share, float64 [contexts, layers, heads]."""
        at = SHARES.index(share)
        return np.stack([np.median(self.array("each", c)[:, at], axis=-1) for c in self.contexts])

    def exponents(self) -> np.ndarray:
        """How the median tokens to 95 % grow, tokens ~ context^b: b of each head, [layers, heads]."""
        medians = self.medians(0.95)
        flat = medians.reshape(len(self.contexts), -1)
        found = [growth(self.contexts, list(column)) for column in flat.T]
        return np.array(found).reshape(medians.shape[1:])

    def summary(self) -> dict[str, Any]:
        """Everything the table, the picture and the recommendation need, as plain numbers."""
        last = self.contexts[-1]
        if self.only_certificate:
            return {"contexts": self.contexts, "layers": self.layers, "certificate": self._certificate(last)}
        medians, safe, exponents, kept = self.medians(0.95), self.safe(), self.exponents(), self.kept()
        result: dict[str, Any] = {
            "contexts": self.contexts,
            "layers": self.layers,
            "budget_tokens": self.budget,
            "queries_per_head": kept.shape[-1],
            "tokens_to_share": {str(c): self._spread(c) for c in self.contexts},
            "heads": int(safe.size),
            "heads_by_tokens_to_95": _classes(medians[-1]),
            "heads_flat": int((exponents <= FLAT).sum()) if len(self.contexts) > 1 else None,
            "heads_safe": int(safe.sum()),
            "mass_kept": _spread(kept),
            "oracle_mass_kept": _spread(self.array("oracle", last)),
            "per_layer_and_head": {
                "median_tokens_to_95": {str(c): m.tolist() for c, m in zip(self.contexts, medians, strict=True)},
                "p90_tokens_to_95": np.quantile(self.array("each", last)[:, SHARES.index(0.95)], 0.9, axis=-1).tolist(),
                "growth_exponent": None if len(self.contexts) < 2 else exponents.tolist(),
                "mass_kept": kept.mean(-1).tolist(),
                "mass_kept_p10": np.quantile(kept, 0.1, axis=-1).tolist(),
                "safe": safe.tolist(),
            },
            "per_layer_and_kv_head": {
                "mean_group_tokens_to_98": self.array("group", last)[:, SHARES.index(0.98)].mean(-1).tolist()
            },
        }
        mass = self.array("anchor_mass", last)
        result["anchors"] = {"tokens_per_kv_head": float(self.array("anchors").mean()), "mass": float(mass.mean())}
        result["per_layer"] = {"anchor_mass": mass.mean((1, 2)).tolist()}
        if self.has("omitted"):
            lost, omitted = (self.array(name, last) for name in ("anchor_mass_omitted", "omitted"))
            result["anchors"]["share_of_omitted"] = float(lost.sum() / max(omitted.sum(), 1e-300))
            result["anchors"]["mass_kept_pinned"] = _spread(self.array("kept_pinned", last))
            result["per_layer"]["anchor_mass_omitted"] = lost.mean((1, 2)).tolist()
        if self.has("gap"):
            gap = self.array("gap", last)
            result["support_gap"] = {"median_nats": float(np.median(gap)), "share_positive": float((gap > 0).mean())}
        if self.has("face"):
            size, delta, mass = np.moveaxis(self.array("face"), 1, 0)
            result["hull_face"] = {
                "tokens": _spread(size),
                "support_gap": _spread(delta),
                "softmax_mass": _spread(mass),
            }
        if self.has("slack"):
            result["certificate"] = self._certificate(last)
        return result

    def _spread(self, context: int) -> dict[str, dict[str, float]]:
        each = self.array("each", context)
        return {f"{share:.0%}": _spread(each[:, i]) for i, share in enumerate(SHARES)}

    def _certificate(self, context: int) -> dict[str, Any]:
        tolerance = self.package.SPEC["certificate"].get("tolerance")
        certified, omitted, slack = (self.array(name, context) for name in ("certified", "mass_omitted", "slack"))
        told = np.isfinite(slack)
        true = omitted <= tolerance if tolerance is not None else None
        # a certificate that is a little larger than the truth must still tell steps that are well within
        clear = omitted <= CLEAR * tolerance if tolerance is not None else None
        return {
            "kind": self.package.SPEC["certificate"]["kind"],
            "tolerance": tolerance,
            "share_certified": float(certified.mean()),
            "share_truly_within": None if true is None else float(true.mean()),
            "share_falsely_certified": None if true is None else float((certified & ~true).mean()),
            "steps": int(certified.size),
            "steps_compared": int(told.sum()),
            "share_certified_of_clear": None if clear is None or not clear.any() else float(certified[clear].mean()),
            "steps_too_low": int((slack[told] < 0).sum()),
            "slack_nats": _spread(slack[told]) if told.any() else None,
            "share_of_estimates_too_low": float((slack[told] < 0).mean()) if told.any() else None,
        }


def _spread(values: np.ndarray) -> dict[str, float]:
    low, median, p90, p99 = np.quantile(values, [0.1, 0.5, 0.9, 0.99], method="inverted_cdf")  # may hold inf
    return {
        "mean": float(values.mean()), "p10": float(low), "median": float(median), "p90": float(p90), "p99": float(p99)
    }  # fmt: skip


def _classes(medians: np.ndarray) -> dict[str, int]:
    """How many heads need at most each of SIZES, and how many more than the last."""
    counts = {f"<= {size}": int((medians <= size).sum()) for size in SIZES}
    return counts | {f"> {SIZES[-1]}": int((medians > SIZES[-1]).sum())}
