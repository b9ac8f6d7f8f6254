"""`vashista-gen eval`: quality of sparse decoding on a real model, from the words of the command line."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vashista_gen.cli.console import output as console
from vashista_gen.errors import UsageError


def default_cache() -> Path:
    """Where prefixes, packages and results are kept: $VASHISTA_GEN_CACHE or ~/.cache/vashista_gen, folder eval."""
    root = os.environ.get("VASHISTA_GEN_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "vashista_gen") / "eval"


def run(
    model: str, spec: Path, output: Path, cache: Path | None, *, budgets: str, context: str, steps: int, documents: int,
    routers: str, needles: str, texts: list[Path], also: list[Path],
) -> int:  # fmt: skip
    """Reads the lists and evaluates. Raises UsageError for a list that is none."""
    from vashista_gen.eval.run import Request, main

    lengths = numbers("--context", context)
    if len(lengths) != 1:
        raise UsageError(f"--context {context}: one length is evaluated at a time", "give one, such as --context 8192")
    request = Request(
        context=lengths[0],
        steps=steps,
        documents=len(texts) or documents,
        budgets=tuple(dict.fromkeys(numbers("--budgets", budgets))),
        routers=tuple(dict.fromkeys(word.strip() for word in routers.split(","))),
        needles=() if needles == "none" else numbers("--needles", needles),
        texts=tuple(texts),
        also=tuple(dict.fromkeys(also)),
    )
    return main(model, spec, output, cache or default_cache(), request, console())


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Counts of tokens out of "512,8k"; k is 1024. Raises UsageError naming the option."""
    found = []
    for word in text.split(","):
        match = re.fullmatch(r"([1-9][0-9]{0,8})(k?)", word.strip().lower())
        if not match:
            raise UsageError(
                f"{option} {text}: {word.strip() or 'nothing'!r} is no number of tokens", f"{option} 512,8k"
            )
        found.append(int(match[1]) * (1024 if match[2] else 1))
    return tuple(found)
