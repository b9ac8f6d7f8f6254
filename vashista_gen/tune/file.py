"""The file beside a spec that holds what was measured, an entry for each device."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vashista_gen.errors import UsageError
from vashista_gen.spec.tuning import path_of


def entry(
    package: ModuleType,
    device: torch.device,
    knobs: dict[str, Any],
    tried: list[dict[str, Any]],
    swept: list[dict[str, Any]],
) -> dict[str, Any]:
    """What is known of one device: the kernels' hash, versions, the knobs taken, and the times in microseconds."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        versions["cuda"] = torch.version.cuda
    else:
        versions["threads"] = torch.get_num_threads()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # the library was compiled elsewhere
        versions["tilelang"] = importlib.metadata.version("tilelang")
    micro = lambda seconds: round(1e6 * seconds, 2)
    times = [
        {**{key: one[key] for key in ("knob", "of", "batch", "context")},
         "microseconds": {str(value): micro(seconds) for value, seconds in one["seconds"].items()},
         **({"wrong": {str(value): why for value, why in one["wrong"].items()}} if one["wrong"] else {})}
        for one in tried
    ]  # fmt: skip
    even = [{**one, "dense": micro(one["dense"]), "sparse": micro(one["sparse"])} for one in swept]
    source = package.op.library.source_hash()
    return {"source": source, "knobs": knobs, "versions": versions, "times": times, "break_even": even}


def write(spec: Path, name: str, device: str, made: dict[str, Any]) -> Path:
    """Puts one device's entry among those of the spec. Raises UsageError where the file cannot be written."""
    path = path_of(spec.parent, name)
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content[device] = made
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(_text(content), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "copy the spec to a folder of your own") from error
    return path


def _text(content: dict[str, Any]) -> str:
    """JSON with a line for each time."""
    devices = []
    for device, made in sorted(content.items()):
        lines = []
        for key, value in made.items():
            if key in ("times", "break_even"):
                rows = ",\n".join(f"   {json.dumps(row)}" for row in value)
                lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]" if rows else f"  {json.dumps(key)}: []")
            else:
                lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
        devices.append(f" {json.dumps(device)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(devices) + "\n}\n"
