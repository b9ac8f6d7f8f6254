"""What an evaluation prints and writes: a table of quality against bytes, one of needles; eval.json and eval.csv."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from vashista_gen.eval import metrics
from vashista_gen.eval.progress import Stages

COLUMNS = ("name", "router", "budget", "as_written", "share_of_dense_bytes", "tokens", "tokens_kept", "nll_difference",
           "nll_difference_error", "perplexity", "dense_perplexity", "perplexity_change", "kl", "kl_error", "agreement", "needles_found",
           "needle_nll")  # fmt: skip


def result(
    loaded: Any, spec: Any, request: Any, field: Sequence[Any], refused: dict[str, str], documents: Sequence[tuple],
    records: Sequence[dict], needles: Sequence[dict],
) -> dict[str, Any]:  # fmt: skip
    """Everything that is shown, drawn and written, as plain values."""
    from vashista_gen.eval.model import windows

    layers = windows(loaded.model)
    length = request.prefix(spec.cache.page_size)
    rows = []
    for one in field[1:]:
        asked = [needle["answers"][one.name] for needle in needles if one.name in needle["answers"]]
        nll = [x for answer in asked for x in answer["nll"]]
        figures = metrics.summary([record[one.name] for record in records])
        share = one.share(spec, length + request.steps // 2, figures["tokens_kept"])
        rows.append(
            {
                "name": one.name, "label": one.label, "router": one.router, "budget": one.budget,
                "as_written": one.as_written, "also": one.also, "share_of_dense_bytes": share,
                **figures,
                "needles_found": sum(sum(answer["found"]) for answer in asked) if asked else None,
                "needles_asked": len(nll), "needle_nll": sum(nll) / len(nll) if nll else None,
                "by_document": [metrics.summary([record[one.name]]) for record in records],
                "spec": None if one.spec is None else one.spec.to_dict(),
            }
        )  # fmt: skip
    return {
        "model": loaded.name, "source": loaded.source, "weights": loaded.fingerprint, "spec": spec.name,
        "layers": len(layers), "sparse_layers": sum(window is None for window in layers),
        "context": length + request.steps, "prefix": length, "steps": request.steps, "rows": rows, "left_out": refused,
        "documents": [
            {
                "name": text.name, "source": text.source, "licence": text.licence, "tokens": len(ids),
                "tokens_sha256": hashlib.sha256(str(ids).encode()).hexdigest(),
            }
            for text, ids in documents
        ],
        "needles": list(needles), "precision": "float32 on the CPU; bytes as stored in the spec's kv_dtype",
    }  # fmt: skip


def show(stages: Stages, found: dict[str, Any]) -> None:
    """Prints the tables, and where the texts come from."""
    layers = f"{found['sparse_layers']} of {found['layers']} layers sparse"
    title = (
        f"{found['model']}, {layers}; {count_of(found)}, {found['steps']} tokens each, "
        f"decoded after {found['prefix']:,}; against dense, perplexity {found['rows'][0]['dense_perplexity']:.3f}"
    )
    stages.say()
    table = _table(title, "", "tokens", "bytes of\ndense", "perplexity", "NLL difference", "KL, nats", "agreement")
    for row in found["rows"]:
        table.add_row(*_cells(row), style="bold" if row["as_written"] else None)
    stages.console.print(table, crop=False, markup=False, highlight=False)
    stages.say("KL(dense || sparse); agreement: the most likely token is dense's; ±: standard error over tokens.")
    if found["needles"]:
        _show_needles(stages, found)
    for name, reason in found["left_out"].items():
        stages.say(f"left out: {name}: {reason}", "yellow")
    for text in found["documents"]:
        stages.say(f"text: {text['name']} ({text['source']}; {text['licence']})")


def count_of(found: dict[str, Any]) -> str:
    """Such as 4 documents."""
    count = len(found["documents"])
    return f"{count} document{'s' if count > 1 else ''}"


def _cells(row):
    error = row["nll_difference_error"]
    change = f"{row['nll_difference']:+.4f}" + (f" ±{error:.4f}" if error is not None else "")
    return (
        row["label"], f"{row['budget']}" if row["tokens_kept"] is None else f"{row['tokens_kept']:.0f} (<= {row['budget']})",
        f"{row['share_of_dense_bytes']:.1%}", f"{row['perplexity_change']:+.2%}", change, f"{row['kl']:.4f}", f"{row['agreement']:.3f}",
    )  # fmt: skip


def _show_needles(stages, found):
    lengths = [needle["length"] for needle in found["needles"]]
    count = len(found["needles"][0]["depths"])
    title = f"Needles found of {count} (mean NLL of an answer's token), by length of the haystack"
    stages.say()
    table = _table(title, "", "tokens", *(f"{length:,}" for length in lengths))
    names = {"dense": ("dense", "all")} | {row["name"]: (row["label"], str(row["budget"])) for row in found["rows"]}
    for name, (label, budget) in names.items():
        answers = [needle["answers"].get(name) for needle in found["needles"]]
        if all(answers):
            table.add_row(label, budget, *(f"{sum(a['found'])} ({sum(a['nll']) / count:.2f})" for a in answers))
    stages.console.print(table, crop=False, markup=False, highlight=False)


def _table(title, *columns):
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", show_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def write(found: dict[str, Any], output: Path) -> list[Path]:
    """eval.json with everything, eval.csv with a row for each contestant, eval.png, needles.png if there are any."""
    from vashista_gen.eval import picture

    output.mkdir(parents=True, exist_ok=True)
    whole, table, frontier = (output / name for name in ("eval.json", "eval.csv", "eval.png"))
    whole.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        rows.writeheader()
        rows.writerows(found["rows"])
    picture.frontier(found, frontier)
    written = [whole, table, frontier]
    if found["needles"]:
        written.append(output / "needles.png")
        picture.needles(found, written[-1])
    return written
