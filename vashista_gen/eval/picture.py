"""Two PNGs: what quality costs in bytes, and where needles are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vashista_gen.eval.report import count_of

INK, SOFT = "#222222", "#8a8a8a"
COLOURS = {"spec": "#1f7a6d", "mean": "#3d6fb6", "quest": "#c8553d", "recent": "#9aa5b1", "oracle": "#222222"}
MARKS = {"spec": "o", "mean": "s", "quest": "^", "recent": "D", "oracle": "x"}
SHORT = {"spec": "spec", "mean": "page mean (paper)", "quest": "box bound (Quest)", "recent": "sinks + recent",
         "oracle": "oracle tokens"}  # fmt: skip
WORST = 4.0  # nats; a digit at random has 2.3


def frontier(found: dict[str, Any], path: Path) -> None:
    """KL and change of perplexity against the share of dense bytes, a line for each router."""
    figure = Figure(figsize=(12.5, 5.4), dpi=78, layout="constrained")
    left, right = figure.subplots(1, 2)
    _lines(left, found, "kl", "KL(dense ‖ sparse), nats")
    left.set_yscale("log")
    left.legend(fontsize=9, frameon=False)
    _lines(right, found, "perplexity_change", "change of perplexity against dense")
    right.axhline(0, color=SOFT, linewidth=0.8)
    right.set_yscale("symlog", linthresh=0.01)
    ticks = [t for t in (-0.05, -0.01, -0.005, 0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)]
    low, high = (f(row["perplexity_change"] for row in found["rows"]) for f in (min, max))
    right.set_yticks(ticks)
    right.set_ylim(min(low * 1.3, -0.006), max(high * 1.3, 0.011))
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:+.1%}".replace(".0%", "%") if y else "0"))
    right.yaxis.set_minor_formatter(NullFormatter())
    what = f"{count_of(found)}, {found['steps']} tokens each after {found['prefix']:,}"
    layers = f"{found['sparse_layers']} of {found['layers']} layers sparse"
    figure.suptitle(f"{found['model']}, {layers}; {what}", fontsize=13, color=INK)
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


def _lines(axes, found, figure, title):
    for router, colour in COLOURS.items():
        rows = sorted(
            (row for row in found["rows"] if row["router"] == router and not row["as_written"]),
            key=lambda row: row["share_of_dense_bytes"],
        )
        written = [row for row in found["rows"] if row["router"] == router and row["as_written"] and not row["also"]]
        if not rows and not written:
            continue
        style = "--" if router == "oracle" else "-"
        everything = sorted([*rows, *written], key=lambda row: row["share_of_dense_bytes"])
        x, y = ([row[key] for row in everything] for key in ("share_of_dense_bytes", figure))
        axes.plot(x, y, style, color=colour, marker=MARKS[router], markersize=5, linewidth=1.6, label=SHORT[router])
        for row in rows:
            axes.annotate(
                str(row["budget"]), (row["share_of_dense_bytes"], row[figure]), xytext=(4, 4),
                textcoords="offset points", fontsize=7.5, color=colour,
            )  # fmt: skip
        for row in written:
            place = row["share_of_dense_bytes"], row[figure]
            axes.plot(*place, "o", markersize=12, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.8)
            text = f"as written, {row['budget']}"
            axes.annotate(text, place, xytext=(8, -14), textcoords="offset points", fontsize=8.5, color=colour)
    for row in found["rows"]:
        if row["also"]:
            place = row["share_of_dense_bytes"], row[figure]
            axes.plot(*place, "*", markersize=9, color=COLOURS["spec"])
            axes.annotate(row["name"], place, xytext=(6, 5), textcoords="offset points", fontsize=8, color=INK)
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}" if x < 0.01 else f"{x:.0%}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes a step reads, share of dense (oracle: K and V of its tokens alone)")
    axes.set_title(title, fontsize=11, color=INK)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)


def needles(found: dict[str, Any], path: Path) -> None:
    """A grid for each contestant: NLL of the answer by depth and length, a dot where every token is the most likely."""
    labels = {"dense": "dense"} | {
        row["name"]: f"{row['name'] if row['also'] else SHORT[row['router']]}, {row['budget']}" for row in found["rows"]
    }
    asked = [name for name in labels if all(name in needle["answers"] for needle in found["needles"])]
    lengths, depths = [needle["length"] for needle in found["needles"]], found["needles"][0]["depths"]
    figure = Figure(figsize=(2.0 * len(asked) + 1.4, 3.3), dpi=100, layout="constrained")
    image = None
    for axes, name in zip(figure.subplots(1, len(asked), sharey=True, squeeze=False)[0], asked, strict=True):
        answers = [needle["answers"][name] for needle in found["needles"]]
        grid = np.array([answer["nll"] for answer in answers]).T
        image = axes.imshow(grid, aspect="auto", cmap="RdYlGn_r", vmin=0, vmax=WORST)
        for column, answer in enumerate(answers):
            for line, hit in enumerate(answer["found"]):
                if hit:
                    axes.plot(column, line, "o", color="white", markersize=6, markeredgecolor=INK)
        axes.set_title(labels[name], fontsize=9, color=INK)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=8)
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], fontsize=8)
        axes.set_xlabel("tokens", fontsize=8)
    figure.axes[0].set_ylabel("depth of the needle")
    figure.colorbar(image, ax=figure.axes, label="NLL of the answer, nats a token", extend="max")
    figure.suptitle(f"{found['model']}: needles; a dot: the whole answer comes first", fontsize=11, color=INK)
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})
