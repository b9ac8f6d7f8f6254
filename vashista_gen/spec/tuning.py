"""What a spec's package is tuned to: tuning/<name>.json beside the spec, one entry for each device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vashista_gen.errors import UsageError

FOLDER = "tuning"
LEAST, MOST = 1, {"blocks_per_sm": 32, "dense_blocks_per_sm": 32, "waves": 64, "split_tokens": 2**20, "max_splits": 64}


def path_of(folder: Path, name: str) -> Path:
    """The tuning file of the spec `name` in `folder`."""
    return folder / FOLDER / f"{name}.json"


def read_tuning(name: str, folder: Path | None) -> dict[str, dict[str, Any]]:
    """{"<target>, <device>": {"source": hash of the kernels tuned, "knobs": {name: value}}}, {} without a file.

    Times and versions that the file also holds are left out. Raises UsageError for a file that `tune` did not write.
    """
    if folder is None or not path_of(folder, name).is_file():
        return {}
    path = path_of(folder, name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problem = f"cannot be read as JSON: {error}"
    else:
        problem = _check(content)
    if problem:
        raise UsageError(f"{path} {problem}", f"remove {path}, then: vashista-gen tune {folder / name}.yaml")
    return {device: {key: entry[key] for key in ("source", "knobs")} for device, entry in sorted(content.items())}


def _check(content: Any) -> str:
    """What is wrong with a tuning file's content, or an empty string."""
    if not isinstance(content, dict):
        return "holds no mapping"
    for device, entry in content.items():
        kinds = (("source", str), ("knobs", dict))
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in kinds):
            return f"has no source and knobs for {device}"
        for knob, value in entry["knobs"].items():
            if knob == "dense_up_to":
                pairs = value if isinstance(value, list) else [None]
                if not all(isinstance(x, list) and len(x) == 2 and _whole(x[0], 1) and _whole(x[1], 0) for x in pairs):
                    return f"has for {device} no list of [batch, tokens] as dense_up_to"
            elif knob not in MOST or not _whole(value, LEAST, MOST[knob]):
                known = f"a whole number from {LEAST} to {MOST[knob]}" if knob in MOST else "a knob that packages have"
                return f"has for {device} {knob}: {value!r}, which is not {known}"
    return ""


def _whole(value: Any, low: int, high: int = 2**31 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
