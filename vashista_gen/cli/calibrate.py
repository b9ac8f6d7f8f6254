"""`vashista-gen calibrate`: measure a model once, and write what a spec's sketch, budgets and certificate read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    spec: Annotated[
        Path,
        typer.Argument(metavar="SPEC", help="A spec of the model's shape; its calibration file need not exist yet."),
    ],
    model: Annotated[str, typer.Option(metavar="MODEL", help="A folder with config.json, a .gguf file, or smollm2.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The JSON file; it belongs beside the spec.")],
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A UTF-8 file, opticks or pydoc:TOPIC; may be given several times."),
    ] = None,
    windows: Annotated[
        int, typer.Option(metavar="N", min=1, help="Documents taken of each text; every third document is held out.")
    ] = 1,
    context: Annotated[str, typer.Option(metavar="N", help="Tokens of a document, such as 8k.")] = "8k",
    queries: Annotated[int, typer.Option(metavar="N", min=1, help="Queries for each document.")] = 32,
    share: Annotated[float, typer.Option(metavar="X", help="Softmax share of a group that a budget holds.")] = 0.98,
    over: Annotated[str, typer.Option(metavar="mean|p90", help="Of the queries: their mean or a percentile.")] = "mean",
    average: Annotated[
        float | None, typer.Option(metavar="N", help="Mean budget in tokens, to which all are scaled.")
    ] = None,
    level: Annotated[float, typer.Option(metavar="X", help="Share of steps that the margin covers.")] = 0.999,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="A margin for each layer.")] = False,
) -> int:
    """Measure a model's centres, balances and budgets on real texts, and the margin of a calibrated certificate."""
    from vashista_gen.calibrate.run import main
    from vashista_gen.cli.console import output as console
    from vashista_gen.cli.explain import parse_contexts
    from vashista_gen.errors import UsageError

    contexts = parse_contexts(context)
    if len(contexts) != 1:
        raise UsageError(f"--context {context}: a calibration has one length", "give --context 8k")
    if not 0 < level < 1:
        raise UsageError(f"--level {level:g} is not between 0 and 1", "give --level 0.999")
    return main(
        spec, output, console(), model=model, texts=text or (), windows=windows, context=contexts[0], queries=queries,
        share=share, over=over, average=average, level=level, per_layer=per_layer,
    )  # fmt: skip
