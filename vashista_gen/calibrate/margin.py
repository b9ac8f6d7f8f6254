"""From the scores of documents to the margin that a calibration file states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vashista_gen.calibrate import conformal, file
from vashista_gen.errors import UsageError

Scores = Mapping[tuple[int, int], np.ndarray]  # log true - log estimated, by (document, layer)


def with_margin(
    calibration: file.Calibration, own: Scores, other: Scores, names: Sequence[str], level: float, per_layer: bool
) -> file.Calibration:
    """The calibration with the conformal margin of `own`, and how it does on `other`, of held-out documents `names`.

    UsageError where there are too few scores for the level.
    """
    whole = _joined(own)
    needed = conformal.least_scores(level)
    fewest = min(len(_joined(own, layer=one.layer)) for one in calibration.layers) if per_layer else len(whole)
    if fewest < needed:
        raise UsageError(
            f"{fewest} scores{' in a layer' if per_layer else ''} cannot give a margin of {level:.1%}: {needed} can",
            "ask for more --queries or --windows, or a lower --level",
        )
    nats = conformal.upper_quantile(whole, level)
    of_layer = lambda number: conformal.upper_quantile(_joined(own, layer=number), level) if per_layer else nats
    layers = tuple(replace(one, margin=of_layer(one.layer)) for one in calibration.layers)
    by_layer = {one.layer: one.margin for one in layers}
    excess = {key: scores - by_layer[key[1]] for key, scores in other.items()}
    by_text = {name: conformal.coverage(_joined(excess, document=i), 0) for i, name in enumerate(names)}
    margin = file.Margin(
        nats, level, len(whole), conformal.coverage(_joined(excess), 0), len(_joined(excess)), by_text, per_layer
    )
    return replace(calibration, layers=layers, margin=margin)


def _joined(scores: Scores, document: int | None = None, layer: int | None = None) -> np.ndarray:
    parts = [x for (d, n), x in scores.items() if document in (None, d) and layer in (None, n)]
    return np.concatenate(parts) if parts else np.empty(0)
