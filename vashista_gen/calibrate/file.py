"""The calibration file: JSON, checked as a whole when it is read. README.md has the schema."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vashista_gen.errors import UsageError

FORMAT, VERSION = "vashista_gen.calibration", 1
HINT = "vashista-gen calibrate SPEC --model MODEL --output FILE writes such a file; vashista_gen/calibrate/README.md"
Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LayerCalibration:
    """Of one layer. center [kv heads, d], the mean key; balance [kv heads, d/2], b of the channels c and c + d/2:

    k <- b k, q <- q / b; value_center [kv heads, d], the mean value; budgets [kv heads], tokens; margin, nats,
    None where no margin was measured.
    """

    layer: int
    center: Rows
    balance: Rows
    value_center: Rows
    budgets: tuple[int, ...]
    margin: float | None = None

    def tensors(self, device: Any = "cpu") -> dict[str, Any]:
        """center, balance, value_center float32 and budgets int32, as torch tensors on a device."""
        import torch

        floats = {
            name: torch.tensor(getattr(self, name), dtype=torch.float32, device=device)
            for name in ("center", "balance", "value_center")
        }
        return floats | {"budgets": torch.tensor(self.budgets, dtype=torch.int32, device=device)}


@dataclass(frozen=True)
class Margin:
    """P(log of the true omitted mass <= estimated log + nats) >= level, for steps like the calibration's.

    scores: steps it comes from; held_out_coverage: the share of held-out steps for which it holds, of held_out_scores.
    """

    nats: float
    level: float
    scores: int
    held_out_coverage: float
    held_out_scores: int
    held_out_by_text: dict[str, float]
    per_layer: bool


@dataclass(frozen=True)
class Calibration:
    """The file's content. model, budgets: see README.md; texts: one mapping for each document."""

    model: dict[str, Any]
    spec: str
    texts: tuple[dict[str, Any], ...]
    made: dict[str, str]
    budgets: dict[str, Any]
    layers: tuple[LayerCalibration, ...]
    margin: Margin | None = None

    def layer(self, number: int) -> LayerCalibration:
        """One layer by its number; UsageError for a layer that was not calibrated."""
        for one in self.layers:
            if one.layer == number:
                return one
        known = [one.layer for one in self.layers]
        raise UsageError(f"the calibration of {self.model['name']} has no layer {number}, only {known}", HINT)

    def margin_of(self, number: int) -> float:
        """The margin of a layer, nats. UsageError where none was measured."""
        margin = self.layer(number).margin
        if margin is None:
            raise UsageError(f"the calibration of {self.model['name']} has no margin", HINT)
        return margin

    def content(self) -> dict[str, Any]:
        """What the file holds, as JSON has it."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


def save(calibration: Calibration, path: Path) -> None:
    """Writes the file; what `load` refuses is refused here too."""
    content = calibration.content()
    parse(content, str(path))
    text = json.dumps(content, indent=1, allow_nan=False)
    # a row of numbers on one line
    text = re.sub(r"\[([^][{}\"]*)\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
    path.write_text(text + "\n", encoding="utf-8")


def load(path: str | Path) -> Calibration:
    """The calibration at `path`. UsageError names the first key that is missing or wrong."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"not JSON ({error})"
        raise UsageError(f"cannot read the calibration {path}: {reason}", HINT) from None
    return parse(content, str(path))


def parse(content: Any, file: str) -> Calibration:
    """A Calibration out of what JSON holds; UsageError as for `load`."""
    check = _Check(file)
    check.that(isinstance(content, dict) and content.get("format") == FORMAT, "format", f"is not {FORMAT!r}")
    check.that(content.get("version") == VERSION, "version", f"{content.get('version')!r}; this reads {VERSION}")
    names = {field.name for field in fields(Calibration)}
    for key in content.keys() - names - {"format", "version"}:
        check.that(False, key, "is not a key of a calibration")
    for key in names - {"margin"}:
        check.that(key in content, key, "is missing")
    model = check.mapping(content["model"], "model", name=str, num_layers=int, num_q_heads=int, num_kv_heads=int,
                          head_dim=int, sm_scale=float)  # fmt: skip
    check.that(isinstance(content["spec"], str), "spec", "is not a name")
    check.mapping(content["made"], "made", date=str)
    check.mapping(content["budgets"], "budgets", share=float, over=str, context=int, average_tokens=float)
    for name in ("texts", "layers"):
        check.that(isinstance(content[name], (list, tuple)) and content[name], name, "is not a list, or is empty")
    for i, text in enumerate(content["texts"]):
        check.mapping(text, f"texts[{i}]", name=str, sha256=str, tokens=int, role=str)
    layers = tuple(_layer(check, given, f"layers[{i}]", model) for i, given in enumerate(content["layers"]))
    measured = {one.margin is not None for one in layers}
    check.that(measured == {content.get("margin") is not None}, "margin", "is in some places only")
    numbers = [one.layer for one in layers]
    check.that(numbers == sorted(set(numbers)), "layers", f"{numbers}: not ascending, or one twice")
    margin = None if content.get("margin") is None else _margin(check, content["margin"])
    return Calibration(
        model, content["spec"], tuple(content["texts"]), content["made"], content["budgets"], layers, margin
    )


class _Check:
    def __init__(self, file: str) -> None:
        self.file = file

    def that(self, right: Any, key: str, message: str) -> None:
        if not right:
            raise UsageError(f"{self.file}: {key} {message}", HINT)

    def mapping(self, given: Any, key: str, **types: type) -> dict[str, Any]:
        self.that(isinstance(given, dict), key, "is not a mapping")
        for name, kind in types.items():
            self.that(name in given, f"{key}.{name}", "is missing")
            self.that(_is(given[name], kind), f"{key}.{name}", f"{given[name]!r} is not a {kind.__name__}")
        return given

    def rows(self, given: Any, key: str, rows: int, columns: int, *, positive: bool) -> Rows:
        right = isinstance(given, (list, tuple)) and len(given) == rows
        right = right and all(isinstance(row, (list, tuple)) and len(row) == columns for row in given)
        self.that(right, key, f"is not [{rows}, {columns}] numbers")
        for i, row in enumerate(given):
            for j, value in enumerate(row):
                right = _is(value, float) and (value > 0 or not positive)
                self.that(
                    right, f"{key}[{i}][{j}]", f"{value!r} is not a {'positive' if positive else 'finite'} number"
                )
        return tuple(tuple(map(float, row)) for row in given)


def _layer(check: _Check, given: Any, key: str, model: dict[str, Any]) -> LayerCalibration:
    check.mapping(given, key, layer=int)
    for name in ("center", "balance", "value_center", "budgets"):
        check.that(name in given, f"{key}.{name}", "is missing")
    check.that(0 <= given["layer"] < model["num_layers"], f"{key}.layer", f"{given['layer']} of {model['num_layers']}")
    heads, width = model["num_kv_heads"], model["head_dim"]
    center = check.rows(given["center"], f"{key}.center", heads, width, positive=False)
    balance = check.rows(given["balance"], f"{key}.balance", heads, width // 2, positive=True)
    value_center = check.rows(given["value_center"], f"{key}.value_center", heads, width, positive=False)
    budgets = given["budgets"]
    right = isinstance(budgets, (list, tuple)) and len(budgets) == heads and all(_is(n, int) and n > 0 for n in budgets)
    check.that(right, f"{key}.budgets", f"is not {heads} numbers of tokens, each at least 1")
    margin = given.get("margin")
    check.that(margin is None or _is(margin, float), f"{key}.margin", f"{margin!r} is not a number of nats")
    return LayerCalibration(given["layer"], center, balance, value_center, tuple(budgets), margin)


def _margin(check: _Check, given: Any) -> Margin:
    check.mapping(given, "margin", nats=float, level=float, scores=int, held_out_coverage=float, held_out_scores=int,
                  held_out_by_text=dict, per_layer=bool)  # fmt: skip
    check.that(0 < given["level"] < 1, "margin.level", f"{given['level']} is not between 0 and 1")
    unknown = given.keys() - {field.name for field in fields(Margin)}
    check.that(not unknown, "margin", f"has unknown keys {sorted(unknown)}")
    return Margin(**given)


def _is(value: Any, kind: type) -> bool:
    """Whether a JSON value is of a kind; a whole number is a float too, true is no number, NaN is none."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
