"""The file beside a spec that holds what was measured, an entry for each device and for each target's kernels."""

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
from vashista_gen.spec.tuning import KERNELS, path_of


def entry(
    package: ModuleType,
    device: torch.device,
    knobs: dict[str, Any],
    tried: list[dict[str, Any]],
    swept: list[dict[str, Any]],
) -> dict[str, Any]:
    """What is known of one device: the kernels' hash, versions, the knobs taken, and the times in microseconds."""
    even = [{**one, "dense": _micro(one["dense"]), "sparse": _micro(one["sparse"])} for one in swept]
    known = {"source": package.op.library.source_hash(), "knobs": knobs, "versions": _versions(device)}
    return {**known, "times": _times(tried), "break_even": even}


def kernels_entry(
    package: ModuleType, device: torch.device, values: dict[str, int], tried: list[dict[str, Any]]
) -> dict[str, Any]:
    """What is known of one target: the constants taken, the hash of the kernels with them, where that was found."""
    source, name = package.op.library.source_hash(), package.op.tuning.name_of(device)
    known = {"values": values, "source": source, "device": name, "versions": _versions(device)}
    return {**known, "times": _times(tried)}


def _versions(device: torch.device) -> dict[str, Any]:
    versions: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        versions["cuda"] = torch.version.cuda
    else:
        versions["threads"] = torch.get_num_threads()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # the library was compiled elsewhere
        versions["tilelang"] = importlib.metadata.version("tilelang")
    return versions


def _times(tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**{key: one[key] for key in ("knob", "of", "batch", "context")},
         "microseconds": {str(value): _micro(seconds) for value, seconds in one["seconds"].items()},
         **({"wrong": {str(value): why for value, why in one["wrong"].items()}} if one["wrong"] else {})}
        for one in tried
    ]  # fmt: skip


def _micro(seconds: float) -> float:
    return round(1e6 * seconds, 2)


def write(
    spec: Path, name: str, device: str, made: dict[str, Any], kernels: dict[str, dict[str, Any]] | None = None
) -> Path:
    """Puts one device's entry, and those of `kernels` by target, among the spec's.

    Raises UsageError where the file cannot be written.
    """
    path = path_of(spec.parent, name)
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content[device] = made
    if kernels:
        content[KERNELS] = {**content.get(KERNELS, {}), **kernels}
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(_text(content), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "copy the spec to a folder of your own") from error
    return path


def stale(path: Path, device: str) -> list[str]:
    """The other devices of a file whose entries are of other kernels than `device`'s."""
    devices = {name: made for name, made in json.loads(path.read_text(encoding="utf-8")).items() if name != KERNELS}
    return [name for name, made in sorted(devices.items()) if made["source"] != devices[device]["source"]]


def _text(content: dict[str, Any]) -> str:
    """JSON with a line for each time."""
    targets = sorted(content.get(KERNELS, {}).items())
    kernels = [f"  {json.dumps(target)}: {_entry_text(made, 3)}" for target, made in targets]
    parts = [f" {json.dumps(KERNELS)}: {{\n" + ",\n".join(kernels) + "\n }"] if kernels else []
    devices = sorted((device, made) for device, made in content.items() if device != KERNELS)
    parts += [f" {json.dumps(device)}: {_entry_text(made, 2)}" for device, made in devices]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _entry_text(made: dict[str, Any], indent: int) -> str:
    space, lines = " " * indent, []
    for key, value in made.items():
        if key in ("times", "break_even"):
            rows = ",\n".join(f"{space} {json.dumps(row)}" for row in value)
            lines.append(f"{space}{json.dumps(key)}: " + (f"[\n{rows}\n{space}]" if rows else "[]"))
        else:
            lines.append(f"{space}{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + f"\n{space[1:]}}}"
