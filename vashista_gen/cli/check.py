"""`vashista-gen check`: read specs, say which are right and every problem of the others."""

from __future__ import annotations

from pathlib import Path

from vashista_gen.cli.console import output, say
from vashista_gen.cli.sources import load_each, raise_all, shipped


def run(paths: list[Path] | None) -> None:
    """Prints an ok line for each good spec; reports and raises the errors of the others."""
    specs, wrong = load_each(paths or shipped())
    console = output()
    for spec in specs:
        model = spec.model
        shape = f"{model.num_q_heads}/{model.num_kv_heads} heads of {model.head_dim}, {model.dtype}"
        say(console, f"ok    {spec.source.file}  {spec.name}: {shape}, {', '.join(spec.targets)}")
    raise_all(wrong)
