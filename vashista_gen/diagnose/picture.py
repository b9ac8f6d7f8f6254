"""One PNG: what each head needs, how that grows with the context, what is kept of it, and which heads are safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

INK, SOFT, GOOD, BAD = "#222222", "#8a8a8a", "#1f7a6d", "#c8553d"


def draw(result: dict[str, Any], path: Path) -> None:
    """Writes the picture of a diagnose.json's content to `path`."""
    figure = Figure(figsize=(13, 9), dpi=100, layout="constrained")
    (needs, grows), (keeps, spread) = figure.subplots(2, 2)
    _needs(needs, result)
    _grows(grows, result)
    _keeps(keeps, result)
    _sorted(spread, result)
    last = result["contexts"][-1]
    documents = len(result["documents"])
    what = f"{documents} document{'s' * (documents > 1)} of up to {last:,} tokens" if documents else f"{last:,} tokens"
    figure.suptitle(f"{result['model']}: how much of its context attention needs ({what})", fontsize=13, color=INK)
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


def _needs(axes, result):
    """Heat map: tokens to 95 % of each layer and head."""
    last = result["contexts"][-1]
    needs = np.array(result["per_layer_and_head"]["median_tokens_to_95"][str(last)])
    image = axes.imshow(needs, aspect="auto", cmap="magma_r", norm=LogNorm(max(1, needs.min()), max(2, needs.max())))
    _heads(axes, result, needs.shape)
    axes.set_title(f"Tokens to 95 % of the softmax at {last:,} (median)", fontsize=11, color=INK)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.9)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))


def _grows(axes, result):
    """A line for each head over the contexts, and the quantiles over all heads and queries."""
    contexts = result["contexts"]
    medians = [np.ravel(result["per_layer_and_head"]["median_tokens_to_95"][str(c)]) for c in contexts]
    axes.plot(contexts, np.array(medians), color=SOFT, linewidth=0.5, alpha=0.35, marker=".")
    for name, colour in (("median", GOOD), ("p90", "#b98b2f"), ("p99", BAD)):
        values = [result["tokens_to_share"][str(c)]["95%"][name] for c in contexts]
        axes.plot(contexts, values, color=colour, linewidth=2.4, marker="o", markersize=5, label=f"{name}, all queries")
    axes.plot(contexts, contexts, color=INK, linewidth=1, linestyle=":", label="every token")
    axes.axhline(result["budget_tokens"], color=INK, linewidth=1, linestyle="--", label="budget")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(contexts, [f"{c:,}" for c in contexts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("tokens to 95 %")
    flat = result["heads_flat"]
    text = "" if flat is None else f": {flat} of {result['heads']} heads stay flat"
    axes.set_title(f"Growth with the context{text}", fontsize=11, color=INK)
    axes.legend(fontsize=8.5, ncols=3, loc="lower center", framealpha=0.9, edgecolor="white")
    _bare(axes)


def _keeps(axes, result):
    """Heat map: mass kept of each layer and head."""
    kept = np.array(result["per_layer_and_head"]["mass_kept"])
    image = axes.imshow(kept, aspect="auto", cmap="viridis", vmin=np.floor(kept.min() * 20) / 20, vmax=1)
    _heads(axes, result, kept.shape)
    rows, columns = np.nonzero(~np.array(result["per_layer_and_head"]["safe"]))
    axes.scatter(columns, rows, s=9, color="white", edgecolors=INK, linewidths=0.5, label="not safe")
    who = result["spec"] or "the oracle's list"
    axes.set_title(f"Mass kept by {who}, {result['budget_tokens']:,} tokens (dots: not safe)", fontsize=11, color=INK)
    axes.figure.colorbar(image, ax=axes, shrink=0.9)


def _sorted(axes, result):
    """Heads in the order of what they need: their median and their p90, against the budget."""
    last = result["contexts"][-1]
    heads = result["per_layer_and_head"]
    median, p90 = np.ravel(heads["median_tokens_to_95"][str(last)]), np.ravel(heads["p90_tokens_to_95"])
    safe = np.ravel(heads["safe"]).astype(bool)
    order = np.argsort(median)
    places = np.arange(1, len(order) + 1)
    axes.vlines(places, median[order], p90[order], color=SOFT, linewidth=0.6, alpha=0.6)
    for chosen, colour, label in ((safe[order], GOOD, "safe"), (~safe[order], BAD, "not safe")):
        text = f"{label} ({int(chosen.sum())})"
        axes.scatter(places[chosen], median[order][chosen], s=10, color=colour, label=text, zorder=3)
    axes.axhline(result["budget_tokens"], color=INK, linewidth=1, linestyle="--", label="budget")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.set_xlabel("query heads, by what they need")
    axes.set_ylabel("tokens to 95 %: median to p90")
    axes.set_title("What each head needs against one budget", fontsize=11, color=INK)
    axes.legend(fontsize=8.5, frameon=False, loc="lower right")
    _bare(axes)


def _heads(axes, result, shape):
    axes.set_xlabel("query head (lines: KV heads)")
    axes.set_ylabel("layer")
    step = max(1, shape[1] // 16)
    axes.set_xticks(range(0, shape[1], step))
    rows = range(0, shape[0], max(1, shape[0] // 12))
    axes.set_yticks(rows, [result["layers"][row] for row in rows])
    for edge in range(result["group_size"], shape[1], result["group_size"]):
        axes.axvline(edge - 0.5, color="white", linewidth=1)


def _bare(axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
