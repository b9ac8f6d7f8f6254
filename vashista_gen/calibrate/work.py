"""The passes over documents: one to measure, one to check, one for the scores of a margin."""

from __future__ import annotations

import datetime
import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vashista_gen import __version__
from vashista_gen.calibrate import file
from vashista_gen.calibrate.budgets import budgets
from vashista_gen.calibrate.keys import KeyStatistics
from vashista_gen.calibrate.omission import Estimator, scores
from vashista_gen.demo.show import Stages
from vashista_gen.diagnose.capture import Capture
from vashista_gen.diagnose.layer import query_positions
from vashista_gen.diagnose.support import effective_support, group_support
from vashista_gen.errors import UsageError


class Work:
    """A model, the context length and the queries of a calibration, and the passes it makes over documents."""

    def __init__(self, loaded: Any, context: int, queries: int, step: int, console: Console) -> None:
        self.loaded, self.context, self.stages = loaded, context, Stages(console)
        self.positions = query_positions([context], queries, step)

    def run(self, what: str, documents: Sequence[Any], visit: Callable[[int, Any], None]) -> None:
        """visit(number of the document, layer) for every layer of every document."""
        for i, document in enumerate(documents):
            with self.stages.count(f"{what}: {document.name}", self.loaded.num_layers) as advance:

                def see(layer: Any, i: int = i, advance: Callable[[], None] = advance) -> None:
                    visit(i, layer)
                    advance()

                Capture(self.loaded.model, see).run(document.ids, self.positions)

    def measure(self, documents: Sequence[Any], share: float, over: str, average: float | None) -> file.Calibration:
        """Centres, balances and budgets out of documents."""
        keys: dict[int, KeyStatistics] = defaultdict(KeyStatistics)
        needs: dict[int, list] = defaultdict(list)

        def visit(_: int, layer: Any) -> None:
            keys[layer.number].add(layer)
            needs[layer.number].append(group_support(layer, share))

        self.run("keys and budgets", documents, visit)
        numbers = sorted(keys)
        if not numbers:
            raise UsageError(
                f"{self.loaded.name}: no layer sees all {self.context} tokens", "calibrate a shorter context"
            )
        wanted = np.stack([np.concatenate([np.asarray(n) for n in needs[i]], axis=-1) for i in numbers])
        tokens = budgets(wanted, over, average, self.context)
        layers = tuple(
            file.LayerCalibration(
                layer=number,
                center=_rows(keys[number].center()),
                balance=_rows(keys[number].balance()),
                value_center=_rows(keys[number].value_center()),
                budgets=tuple(int(n) for n in row),
            )
            for number, row in zip(numbers, tokens, strict=True)
        )
        names = ("name", "num_layers", "num_q_heads", "num_kv_heads", "head_dim", "sm_scale")
        about = {
            "share": share, "over": over, "context": self.context, "average_tokens": float(tokens.mean()),
            "average_asked": average,
        }  # fmt: skip
        model = {name: getattr(self.loaded, name) for name in names}
        return file.Calibration(model, "", ({},), _made(), about, layers)

    def check(self, calibration: file.Calibration, documents: Sequence[Any]) -> file.Calibration:
        """The calibration with the share that its budgets keep of held-out documents, by an oracle's lists."""
        kept: list[Any] = []

        def visit(_: int, layer: Any) -> None:
            for head, tokens in enumerate(calibration.layer(layer.number).budgets):
                group = slice(head * layer.group_size, (head + 1) * layer.group_size)
                one = replace(layer, q=layer.q[group], k=layer.k[head : head + 1], v=layer.v[head : head + 1])
                kept.append(effective_support(one, tokens).kept.flatten())

        self.run("held-out documents", documents, visit)
        shares = torch.cat(kept)
        achieved = {"held_out_share_mean": float(shares.mean()), "held_out_share_p10": float(shares.quantile(0.1))}
        return replace(calibration, budgets=calibration.budgets | achieved)

    def scores(self, what: str, documents: Sequence[Any], estimate: Estimator) -> dict[tuple[int, int], np.ndarray]:
        """Scores of an estimate by (number of the document, number of the layer), each float64 [n]."""
        found: dict[tuple[int, int], Any] = {}

        def visit(i: int, layer: Any) -> None:
            found[i, layer.number] = scores(estimate(layer)).numpy()

        self.run(what, documents, visit)
        return found


def _made() -> dict[str, str]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "vashista_gen": __version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }


def _rows(values: Any) -> file.Rows:
    """Six digits are more than any use of them needs, and keep the file readable."""
    return tuple(tuple(float(f"{x:.6g}") for x in row) for row in values.tolist())
