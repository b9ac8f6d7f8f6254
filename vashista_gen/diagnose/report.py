"""What `diagnose` prints: one table of contexts, one of layers, and sentences that say what follows."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from vashista_gen.diagnose.findings import CLEAR, FLAT, SAFE_MASS, SAFE_QUERIES


def contexts(result: dict[str, Any]) -> Table:
    """Tokens to a share of the softmax, over all layers and heads, at each context."""
    shares = list(next(iter(result["tokens_to_share"].values())))
    names = [f"{share} of the mass: median / p90 / p99" for share in shares if share != "98%"]
    table = _table("context", *names)
    for context, row in result["tokens_to_share"].items():
        cells = [f"{row[s]['median']:,.0f} / {row[s]['p90']:,.0f} / {row[s]['p99']:,.0f}" for s in shares if s != "98%"]
        table.add_row(f"{int(context):,}", *cells)
    return table


def layers(result: dict[str, Any]) -> Table:
    """A row for each layer: what its heads need and what they keep."""
    columns = (
        "layer",
        "tokens to 95 %: least",
        "median head",
        "most",
        "growth",
        "mass kept",
        "lowest head",
        "safe heads",
    )
    table = _table(*columns)
    heads = result["per_layer_and_head"]
    needs = np.array(heads["median_tokens_to_95"][str(result["contexts"][-1])])
    exponents = np.array(heads["growth_exponent"]) if heads["growth_exponent"] else None
    for i, number in enumerate(result["layers"]):
        kept, safe = np.array(heads["mass_kept"][i]), heads["safe"][i]
        grows = f"{np.median(exponents[i]):.2f}" if exponents is not None else "-"
        table.add_row(
            str(number), f"{needs[i].min():,.0f}", f"{np.median(needs[i]):,.0f}", f"{needs[i].max():,.0f}", grows,
            f"{kept.mean():.3f}", f"{kept.min():.3f}", f"{sum(safe)} of {len(safe)}",
            style="yellow" if sum(safe) < len(safe) / 2 else None,
        )  # fmt: skip
    return table


def sentences(result: dict[str, Any]) -> list[str]:
    """What the figures say, one sentence a line."""
    last = result["contexts"][-1]
    who = f"the spec {result['spec']}" if result["spec"] else "an oracle's list"
    classes = ", ".join(f"{count} need {size}" for size, count in result["heads_by_tokens_to_95"].items())
    lines = [f"Tokens to 95 % at {last:,} (median over queries), of {result['heads']} heads: {classes}."]
    if result["heads_flat"] is not None:
        lines.append(
            f"Constant size: {result['heads_flat']} heads grow no faster than context^{FLAT}; the others do, and no "
            "constant budget suits them for ever."
        )
    lines.append(
        f"Kept at {last:,} by {who} of {result['budget_tokens']:,} tokens: {result['mass_kept']['mean']:.3f} of the "
        f"mass (p10 {result['mass_kept']['p10']:.3f}); the best list: {result['oracle_mass_kept']['mean']:.3f}."
    )
    lines.append(
        f"Safe heads (at least {SAFE_MASS:.0%} kept in {SAFE_QUERIES:.0%} of the queries): "
        f"{result['heads_safe']} of {result['heads']}."
    )
    if "support_gap" in result:
        gap = result["support_gap"]
        lines.append(
            f"Support gap of the routed pages: median {gap['median_nats']:.2f} nats, above 0 for "
            f"{gap['share_positive']:.1%} of the queries. Below 0 only the mass left out says what is lost."
        )
    if result["anchors"]["tokens_per_kv_head"]:
        lines.append(_anchors(result))
    if "hull_face" in result:
        face = result["hull_face"]
        lines.append(
            f"The hull's active face: {face['tokens']['median']:.0f} keys, gap {face['support_gap']['median']:.2g}; "
            f"{face['softmax_mass']['median']:.0%} of the softmax lies on it, so it is another operator."
        )
    if "certificate" in result:
        lines.append(certificate_sentence(result["certificate"]))
    if result["windowed_layers"]:
        lines.append(f"Not looked at, since they see a sliding window: layers {result['windowed_layers']}.")
    return lines


def ranges(numbers: list[int]) -> str:
    """ "1-3, 7" for [1, 2, 3, 7]."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _anchors(result: dict[str, Any]) -> str:
    found, by_layer = result["anchors"], result["per_layer"]["anchor_mass"]
    where = [number for number, mass in zip(result["layers"], by_layer, strict=True) if mass > 0.05]
    text = (
        "Anchors, tokens inside a text that all late queries attend to: "
        f"{found['tokens_per_kv_head']:.1f} for a KV head on average, {found['mass']:.1%} of the mass; "
        f"over 5 % in layers {ranges(where) or 'none'}."
    )
    if found.get("share_of_omitted", 0) > 0.1:
        text += (
            f" {found['share_of_omitted']:.0%} of what routing leaves out lies on them; with their pages pinned "
            f"{found['mass_kept_pinned']['mean']:.3f} is kept, p10 {found['mass_kept_pinned']['p10']:.3f}."
        )
    return text


def certificate_sentence(found: dict[str, Any]) -> str:
    """How a certificate does against the truth."""
    slack = found["slack_nats"]
    text = f"Certificate ({found['kind']}): {found['share_certified']:.1%} of the steps certified"
    if found["share_truly_within"] is not None:
        text += (
            f", {found['share_truly_within']:.1%} truly within {found['tolerance']:g}, "
            f"{found['share_falsely_certified']:.2%} certified wrongly"
        )
    if found["share_certified_of_clear"] is not None:
        text += f"; of those that omit at most {CLEAR * found['tolerance']:.3g}, {found['share_certified_of_clear']:.1%} certified"
    text += f"; {found['steps_too_low']:,} of {found['steps_compared']:,} omitted masses stated too low"
    return text + (f"; slack median {slack['median']:.3f} nats, p90 {slack['p90']:.3f}." if slack else ".")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table
