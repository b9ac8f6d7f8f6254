"""What a spec reads of a calibration file: centres, balances, budgets and margins of every layer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vashista_gen.spec.fields import Values
from vashista_gen.spec.report import Report

KEYS = ("sketch.balance", "certificate.margin")
READ = {
    "sketch.balance": ("center", "balance", "value_center"),
    "certificate.margin": ("margin", "budgets"),
}


def read_calibration(values: Values, folder: Path | None, report: Report) -> dict[str, list[dict[str, Any]]]:
    """{"layers": [{"center": [kv heads][d], "balance": [kv heads][d / 2], "budgets": [kv heads], "margin": x}, ...]}.

    Of each file what the key that names it stands for; empty when the spec names none. Problems are of rule R37.
    """
    layers: list[dict[str, Any]] = []
    for key in KEYS:
        name = values[key]
        if name is None:
            continue
        problem, content = _read(name, folder)
        if not problem:
            problem = _check(content, key, values["model.num_kv_heads"], values["model.head_dim"])
        if problem:
            report.add(values.lines[key], "R37", f"{name}: {problem}", "write it anew with `vashista-gen calibrate`")
            continue
        given = content["layers"]
        if layers and len(layers) != len(given):
            message = f"{name} has {len(given)} layers, the other calibration file {len(layers)}"
            report.add(values.lines[key], "R37", message, "name files that were calibrated on the same model")
            continue
        layers = layers or [{} for _ in given]
        for layer, one in zip(layers, given, strict=True):
            layer.update({field: one[field] for field in READ[key] if field in one})
    return {"layers": layers} if layers else {}


def _read(name: str, folder: Path | None) -> tuple[str, Any]:
    """(problem, content)."""
    if folder is None:
        return "a spec given as text has no folder to read it from", None
    try:
        return "", json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "there is no such file beside the spec", None
    except (OSError, ValueError) as error:
        return f"cannot be read as JSON ({error})", None


def _check(content: Any, key: str, heads: int, head_dim: int) -> str:
    """What is wrong with a calibration file's content, or an empty string."""
    if not isinstance(content, dict) or not isinstance(content.get("layers"), list) or not content["layers"]:
        return "has no list `layers`"
    shapes = {"center": (heads, head_dim), "value_center": (heads, head_dim), "balance": (heads, head_dim // 2)}
    shapes |= {"budgets": (heads,), "margin": ()}
    for number, layer in enumerate(content["layers"]):
        if not isinstance(layer, dict):
            return f"layer {number} is no mapping"
        for field in READ[key]:
            required = field in ("balance", "margin")
            if field not in layer and not required:
                continue
            if field not in layer or not _has_shape(layer[field], shapes[field]):
                return f"layer {number} needs {field} as numbers of shape {list(shapes[field])}"
            if field == "balance" and not all(x > 0 for row in layer[field] for x in row):
                return f"layer {number} has a balance that is not positive"
    return ""


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, list) and len(value) == shape[0] and all(_has_shape(x, shape[1:]) for x in value)
