"""One PNG of the demo: where the softmax mass is kept, what the next tokens lose, and what a step costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

INK, SOFT = "#222222", "#8a8a8a"
BARS = {"torch_sdpa": "#9aa5b1", "dense_op": "#5b7083", "sparse_op": "#1f7a6d"}
NAMES = {
    "torch_sdpa": "torch SDPA,\ncontiguous KV",
    "dense_op": "dense op,\npaged KV",
    "sparse_op": "sparse op,\npaged KV",
}
DIFFERS = "#c8553d"


def draw(result: dict[str, Any], path: Path) -> None:
    """Writes the picture of a demo.json's content to `path`."""
    figure = Figure(figsize=(12.5, 7.2), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.35])
    _mass(left.subplots(), result)
    divergence, cost = right.subplots(2, 1, height_ratios=[1.25, 1])
    _divergence(divergence, result)
    _cost(cost, result)
    what = f"{result['steps']} tokens decoded after {result['tokens']:,} of a document, all layers sparse"
    figure.suptitle(f"{result['model']}: {what}", fontsize=13, color=INK)
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


def _mass(axes, result):
    kept = np.array(result["per_layer_and_head"]["mass_kept"])
    low = np.floor(kept.min() * 20) / 20
    image = axes.imshow(kept, aspect="auto", cmap="viridis", vmin=low, vmax=1)
    axes.set_xlabel("query head (lines: KV heads)")
    axes.set_ylabel("layer")
    axes.set_xticks(range(kept.shape[1]))
    axes.set_yticks(range(0, kept.shape[0], 3))
    for edge in range(result["group_size"], kept.shape[1], result["group_size"]):
        axes.axvline(edge - 0.5, color="white", linewidth=1.5)
    axes.set_title(f"Softmax mass kept: mean {kept.mean():.3f}, lowest head {kept.min():.2f}", fontsize=11, color=INK)
    axes.figure.colorbar(image, ax=axes, shrink=0.9)


def _divergence(axes, result):
    kl = np.array(result["per_step"]["kl_nats"])
    same = np.array(result["per_step"]["same_next_token"])
    steps = np.arange(1, len(kl) + 1)
    floor = 1e-5
    shown = np.maximum(kl, floor)
    for chosen, colour, label in ((same, BARS["sparse_op"], "same"), (~same, DIFFERS, "another")):
        text = f"{label} likeliest token ({int(chosen.sum())})"
        axes.bar(steps[chosen], shown[chosen] - floor / 2, bottom=floor / 2, width=0.8, color=colour, label=text)
    axes.axhline(kl.mean(), color=INK, linewidth=1, linestyle="--", label=f"mean {result['kl_nats_mean']:.4f} nats")
    axes.set_yscale("log")
    axes.set_ylim(floor / 2, shown.max() * 12)
    axes.set_xlim(0, len(kl) + 1)
    axes.set_xlabel("step")
    axes.set_ylabel("KL(dense ‖ sparse), nats")
    axes.set_title("What the next-token distribution loses", fontsize=11, color=INK)
    axes.legend(fontsize=8.5, ncols=3, loc="upper center", frameon=False)
    _bare(axes)


def _cost(axes, result):
    times = {name: result["time_per_token_and_layer"][name]["median_us"] for name in BARS}
    share = {"torch_sdpa": 1.0, "dense_op": 1.0, "sparse_op": result["share_of_kv_bytes_read"]}
    places = range(len(BARS))
    axes.barh(places, times.values(), color=BARS.values(), height=0.62)
    started = 0.0
    parts = {"choosing pages": "sparse_op_routing", "summary": "sparse_op_summary_update"}
    widths = {text: result["time_per_token_and_layer"][name]["median_us"] for text, name in parts.items()}
    widths["attention"] = max(0.0, times["sparse_op"] - sum(widths.values()))
    for text, width in widths.items():
        axes.barh(len(BARS) - 1, width, left=started, color="none", edgecolor="white", height=0.62)
        if width > 0.016 * len(text) * max(times.values()):  # room for the word
            middle = started + width / 2
            axes.text(middle, len(BARS) - 1, text, va="center", ha="center", fontsize=7.5, color="white")
        started += width
    for place, name in enumerate(BARS):
        text = f"  {times[name]:,.0f} µs, {share[name]:.0%} of the KV bytes"
        axes.text(times[name], place, text, va="center", fontsize=9.5, color=INK)
    axes.set_yticks(places, [NAMES[name] for name in BARS])
    axes.invert_yaxis()
    axes.set_xlim(0, max(times.values()) * 1.62)
    axes.set_xlabel(f"attention, µs per token and layer (median; torch with {result['torch_threads']} threads)")
    axes.set_title("What a step costs on this CPU", fontsize=11, color=INK)
    _bare(axes)


def _bare(axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
