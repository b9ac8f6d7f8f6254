"""One log-log picture: time of a step against context."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from vashista_gen.bench import results
from vashista_gen.bench.require import short
from vashista_gen.bench.results import Result

INK, SOFT = "#222222", "#8a8a8a"
LINES = {
    "sdpa": ("torch SDPA\ncontiguous KV", "#c8553d"),
    "flashinfer": ("FlashInfer\npaged KV", "#b98b2f"),
    "dense": ("dense op\npaged KV", "#5b7083"),
    "sparse": ("sparse op\npaged KV", "#1f7a6d"),
}
PARTS = {  # name: (label, dashes, colour)
    "select": ("sparse op: choosing pages", (0, (1, 1.6)), LINES["sparse"][1]),
    "attend": ("sparse op: attention to them", (0, (4, 2)), LINES["sparse"][1]),
    "flashinfer_pages": ("FlashInfer: attention to every token of those pages", (0, (4, 2)), LINES["flashinfer"][1]),
    "tilelang_pages": ("TileLang's example: the same", (0, (4, 2)), SOFT),
    "chosen": ("sparse op, its own choice: dense", (0, (2, 1)), INK),
}
FLOORS = {"dense": "#5b7083", "sparse": "#1f7a6d"}


def draw(result: Result, path: Path) -> None:
    """Writes the picture of a run that has at least one time."""
    figure = Figure(figsize=(10.5, 6.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    ends = _lines(axes, result)
    _parts(axes, result)
    _floors(axes, result)
    _break_even(axes, result)
    contexts = [case.context for case in result.timed]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _speedups(axes, result)
    axes.set_xlim(contexts[0] / 1.15, contexts[-1] * max(1.6, (contexts[-1] / contexts[0]) ** 0.2))
    axes.set_xticks(contexts, [short(context) for context in contexts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 1 else f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("µs for one step of one layer (median; band: from the fastest tenth)")
    axes.grid(which="major", color="#e6e6e6", linewidth=0.8)
    axes.grid(which="minor", axis="y", color="#f3f3f3", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    _labels(axes, ends, contexts[-1])
    environment = result.environment
    where = f"{environment['processor']}, {environment['dtype']}, batch {environment['batch']}"
    count = environment["threads"]
    threads = f", {count} thread{'s' * (count > 1)}" if environment["device"] == "cpu" else ""
    axes.set_title(f"{result.name}: a decode step against context", fontsize=13, color=INK, loc="left", pad=26)
    text = f"{where}, torch {environment['torch']}{threads}; synthetic keys"
    axes.text(0, 1.025, text, transform=axes.transAxes, fontsize=9.5, color=SOFT)
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


def _series(result, name, of=lambda timing: timing.median):
    points = [(case.context, of(case.times[name]) * 1e6) for case in result.timed if name in case.times]
    return [list(values) for values in zip(*points, strict=True)] or [[], []]


def _lines(axes, result):
    """Draws the lines; {name: (label, colour, last y)} of those that reach the last context."""
    ends = {}
    for name, (label, colour) in LINES.items():
        x, y = _series(result, name)
        if not x:
            continue
        axes.plot(x, y, color=colour, linewidth=2.2, marker="o", markersize=5)
        axes.fill_between(x, _series(result, name, lambda t: t.fastest_tenth)[1], y, color=colour, alpha=0.18, lw=0)
        if x[-1] == result.timed[-1].context:
            ends[name] = (label, colour, y[-1])
    return ends


def _labels(axes, ends, last):
    """Names the lines at their right ends, moved apart where they would touch."""
    axes.figure.canvas.draw()
    low, high = axes.get_ylim()
    gap = (high / low) ** 0.075
    ordered = sorted(ends.values(), key=lambda end: end[2])
    places: list[float] = []
    for _, _, y in ordered:
        places.append(max(y, places[-1] * gap) if places else y)
    most = high / gap**0.5  # those at the top push the ones below them down
    for i in reversed(range(len(places))):
        places[i] = min(places[i], most)
        most = places[i] / gap
    for (label, colour, _), place in zip(ordered, places, strict=True):
        axes.text(last * 1.09, place, label, color=colour, fontsize=10, va="center", fontweight="bold")


def _parts(axes, result):
    for name, (label, dashes, colour) in PARTS.items():
        x, y = _series(result, name)
        if x:
            axes.plot(x, y, color=colour, linewidth=1.2, linestyle=dashes, label=label)


def _floors(axes, result):
    if result.bandwidth is None:
        return
    x = [case.context for case in result.timed]
    for name, colour in FLOORS.items():
        y = [result.floor(getattr(case, f"{name}_bytes")) * 1e6 for case in result.timed]
        label = f"byte floor, {name}: {result.bandwidth / 1e9:,.0f} GB/s"
        axes.plot(x, y, color=colour, linewidth=1, linestyle=(0, (6, 3)), alpha=0.8, label=label)


def _speedups(axes, result):
    """A row above the axis: how many times faster the sparse step is than SDPA."""
    low, high = axes.get_ylim()
    axes.set_ylim(low / (high / low) ** 0.09, high)
    shown = [(case.context, case.ratios["speedup"]) for case in result.timed if case.ratios["speedup"] is not None]
    place = {"xycoords": ("data", "axes fraction"), "ha": "center", "color": LINES["sparse"][1]}
    for context, ratio in shown:
        text = f"{ratio:.2g}x" if ratio < 10 else f"{ratio:.0f}x"
        axes.annotate(text, (context, 0.018), fontsize=10, fontweight="bold", **place)
    if shown:
        axes.annotate("sparse op against SDPA", (shown[0][0], 0.055), fontsize=8.5, **place | {"ha": "left"})


def _break_even(axes, result):
    for ratio, words, height in (("speedup", "SDPA", 0.1), ("over_dense", "the dense op", 0.14)):
        context = results.break_even(result.timed, ratio)[1]
        if context is not None and context > result.timed[0].context:
            axes.axvline(context, color=SOFT, linewidth=1, linestyle=":")
            axes.annotate(f"break-even with {words} {context:,.0f}", (context, height),
                          xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
                          fontsize=8.5, color=SOFT)  # fmt: skip
