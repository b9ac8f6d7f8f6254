"""The order of a calibration: documents to measure on, documents to check on, the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vashista_gen.calibrate import file, report
from vashista_gen.errors import UsageError

HOLD_OUT_EVERY = 3  # every third document is held out


def main(
    spec: Path, output: Path, console: Console, *, model: str, texts: Sequence[str] = (), windows: int = 1,
    context: int = 8192, queries: int = 32, share: float = 0.98, over: str = "mean", average: float | None = None,
    level: float = 0.999, per_layer: bool = False,
) -> int:  # fmt: skip
    """Measures centres, balances and budgets, and the margin of a certificate of kind calibrated; writes the file.

    The calibration files that the spec names need not exist yet.
    Returns 0, or 1 where a margin's held-out coverage misses the level by more than chance explains (the file is then
    not written). Raises UsageError for wrong inputs, SpecError, DriftError, MissingEnvironmentError as `diagnose` does.
    """
    from vashista_gen.calibrate import budgets, omission
    from vashista_gen.calibrate.margin import with_margin
    from vashista_gen.diagnose import models, staging
    from vashista_gen.diagnose import texts as sources

    _right(share, over, average, context, budgets)
    loaded_spec = staging.load_unfinished(spec)
    given = [sources.find(name) for name in texts or sources.DEFAULTS]
    loaded = models.load(model)
    loaded.check_fits(loaded_spec)
    read = lambda text: sources.windows(loaded.tokenizer, text, context, windows, loaded.gguf)
    documents = [one for text in given for one in read(text)]
    measured = [one for i, one in enumerate(documents) if i % HOLD_OUT_EVERY != HOLD_OUT_EVERY - 1]
    held_out = [one for i, one in enumerate(documents) if i % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1]
    if not held_out:
        raise UsageError(
            f"{len(documents)} documents leave none to check on", f"give {HOLD_OUT_EVERY} or more: --windows or --text"
        )
    from vashista_gen.calibrate.work import Work

    work = Work(loaded, context, queries, loaded_spec.cache.page_size, console)
    roles = [_described(one, "calibration") for one in measured] + [_described(one, "held_out") for one in held_out]
    calibration = replace(work.measure(measured, share, over, average), spec=loaded_spec.name, texts=tuple(roles))
    calibration = work.check(calibration, held_out)
    if loaded_spec.certificate.kind == "calibrated":
        zero = replace(calibration, layers=tuple(replace(one, margin=0.0) for one in calibration.layers))
        with staging.measuring(spec, zero.content()) as package:
            estimate = omission.of_package(package)
            own, other = work.scores("margin", measured, estimate), work.scores("held-out margin", held_out, estimate)
        calibration = with_margin(calibration, own, other, [one.name for one in held_out], level, per_layer)
        if report.missed(calibration.margin, console):
            return 1
    file.save(calibration, output)
    report.show(console, calibration)
    console.print(f"wrote {output}", highlight=False, soft_wrap=True)
    return 0


def _right(share: float, over: str, average: float | None, context: int, budgets: Any) -> None:
    if not 0 < share < 1:
        raise UsageError(f"--share {share:g} is not between 0 and 1", "give --share 0.98")
    try:
        if over != "mean":
            budgets.percentile(over)
    except ValueError as error:
        raise UsageError(f"--over: {error}", "give --over mean or --over p90") from None
    if average is not None and not budgets.LEAST <= average <= context:
        raise UsageError(
            f"--average {average:g} with budgets from {budgets.LEAST} to the context's {context} tokens",
            "give an average between the two",
        )


def _described(document: Any, role: str) -> dict[str, Any]:
    text = document.text
    return {
        "name": document.name, "role": role, "tokens": document.ids.shape[1], "sha256": text.sha256,
        "source": text.source, "licence": text.licence,
    }  # fmt: skip
