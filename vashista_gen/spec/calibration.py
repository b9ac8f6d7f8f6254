"""What a spec reads of a calibration file: centres, balances, budgets and margins of every layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vashista_gen.spec.fields import FLOAT32_MAX, FLOAT32_TINY, Values
from vashista_gen.spec.report import Report

KEYS = ("sketch.balance", "certificate.margin")
READ = {
    "sketch.balance": ("center", "balance", "value_center"),
    "certificate.margin": ("margin", "budgets"),
}
REQUIRED = ("balance", "margin")


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
            hint = f"write it with `vashista-gen calibrate`, or set {key} to another file"
            report.add(values.lines[key], "R37", f"{key} {name}: {problem}", hint)
            continue
        given = content["layers"]
        if layers and len(layers) != len(given):
            message = f"{key} {name}: number of layers {len(given)}, of {KEYS[0]} {values[KEYS[0]]} it is {len(layers)}"
            report.add(values.lines[key], "R37", message, "name files that were calibrated on the same model")
            continue
        layers = layers or [{"layer": one.get("layer", place)} for place, one in enumerate(given)]
        for layer, one in zip(layers, given, strict=True):
            if one.get("layer", layer["layer"]) != layer["layer"]:
                message = f"{name} holds layer {one['layer']} where the other calibration file holds {layer['layer']}"
                report.add(values.lines[key], "R37", message, "name files that were calibrated on the same model")
                break
            layer.update({field: one[field] for field in READ[key] if one.get(field) is not None})
    return {"layers": layers} if layers else {}


def _read(name: str, folder: Path | None) -> tuple[str, Any]:
    """(problem, content)."""
    if folder is None:
        return "a spec given as text has no folder to read it from", None
    try:
        return "", json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "no such file beside the spec", None
    except OSError as error:
        return f"cannot be read, {error.strerror}", None
    except RecursionError:
        return "not JSON: nested too deeply", None
    except ValueError as error:
        return f"not JSON: {error}", None


def _check(content: Any, key: str, heads: int, head_dim: int) -> str:
    """What is wrong with a calibration file's content, or an empty string."""
    if not isinstance(content, dict) or not isinstance(content.get("layers"), list) or not content["layers"]:
        return "no list `layers` in it"
    shapes = {"center": (heads, head_dim), "value_center": (heads, head_dim), "balance": (heads, head_dim // 2)}
    shapes |= {"budgets": (heads,), "margin": ()}
    for number, layer in enumerate(content["layers"]):
        if not isinstance(layer, dict):
            return f"layer {number} is no mapping"
        for field in READ[key]:
            if layer.get(field) is None and field not in REQUIRED:
                continue
            if layer.get(field) is None:
                return f"layer {number} has no {field}"
            if not _has_shape(layer[field], shapes[field]):
                what = f"numbers of shape {list(shapes[field])}" if shapes[field] else "a number"
                return f"{field} of layer {number} must be {what}, finite in float32"
            if field == "balance" and not all(x >= FLOAT32_TINY for row in layer[field] for x in row):
                return f"balance of layer {number} must be positive"
            if field == "budgets" and not all(isinstance(x, int) and x >= 1 for x in layer[field]):
                return f"budgets of layer {number} must be whole numbers of tokens, at least 1"
    return ""


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX
    return isinstance(value, list) and len(value) == shape[0] and all(_has_shape(x, shape[1:]) for x in value)
