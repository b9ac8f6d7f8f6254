"""`vashista-gen diagnose`: what a model's attention needs, head by head, and the spec that suits it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def diagnose(
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A folder with config.json, a .gguf file, or smollm2.")
    ] = None,
    tensors: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .safetensors file with q, k and v instead of a model.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A UTF-8 file, opticks or pydoc:TOPIC; may be given several times."),
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(metavar="SPEC", help="A generated spec: what its op keeps is measured.")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where JSON, picture and suggested spec go.")] = Path(
        "diagnose-output"
    ),
    context: Annotated[str | None, typer.Option(metavar="N,...", help="Context lengths, such as 2k,4k,8k.")] = None,
    queries: Annotated[int, typer.Option(metavar="N", min=1, help="Queries for each context and document.")] = 16,
    windows: Annotated[int, typer.Option(metavar="N", min=1, help="Documents taken of each text.")] = 1,
    budget: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens kept, where no spec says.")] = 1024,
    hull: Annotated[
        bool, typer.Option(help="Also project a query of each KV head on the keys' hull, as the paper does.")
    ] = True,
    certificate: Annotated[
        bool, typer.Option("--certificate", help="Only hold the spec's certificate against the truth.")
    ] = False,
) -> int:
    """Show what a model's attention needs by layer and head, what a spec keeps of it, and suggest a spec."""
    from vashista_gen.cli.console import output as console
    from vashista_gen.cli.explain import parse_contexts
    from vashista_gen.diagnose.run import main

    contexts = parse_contexts(context) if context else None
    return main(
        output, console(), model=model, tensors=tensors, texts=text or (), spec=spec, contexts=contexts,
        queries=queries, windows=windows, budget=budget, hull=hull, certificate=certificate,
    )  # fmt: skip
