"""What a spec's package is tuned to: tuning/<name>.json beside the spec, an entry for each device and each target."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vashista_gen.spec.kernels import kernel_choices
from vashista_gen.spec.model import Spec
from vashista_gen.spec.report import Report, closest, listed

FOLDER = "tuning"
KERNELS = "kernels"  # the key of constants by target; the others are devices
LEAST, MOST = 1, {"blocks_per_sm": 32, "dense_blocks_per_sm": 32, "waves": 64, "split_tokens": 2**20, "max_splits": 64}
Problems = Iterator[tuple[tuple[str, ...], str]]


def path_of(folder: Path, name: str) -> Path:
    """The tuning file of the spec `name` in `folder`."""
    return folder / FOLDER / f"{name}.json"


def read_tuning(spec: Spec, folder: Path | None) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, int]]]:
    """({"<target>, <device>": {"source": hash of the kernels tuned, "knobs": {name: value}}}, {target: constants}).

    constants: {name: value}. Empty without a file; times and versions that it also holds are left out. Raises SpecError
    with all problems (R46).
    """
    if folder is None or not path_of(folder, spec.name).is_file():
        return {}, {}
    report, text = Report(path_of(Path(spec.source.file).parent, spec.name).as_posix()), ""
    try:
        text = path_of(folder, spec.name).read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        problems = [(getattr(error, "lineno", 1), f"cannot be read as JSON: {error}")]
    else:
        problems = [(_line(text, at), message) for at, message in _check(content, spec)]
    for line, message in problems:
        report.add(line, "R46", message, f"mend or remove the file, then: vashista-gen tune {spec.source.file}")
    report.raise_if_any()
    devices = {device: entry for device, entry in sorted(content.items()) if device != KERNELS}
    return (
        {device: {key: entry[key] for key in ("source", "knobs")} for device, entry in devices.items()},
        {target: entry["values"] for target, entry in sorted(content.get(KERNELS, {}).items())},
    )


def _check(content: Any, spec: Spec) -> Problems:
    """(keys that lead there, what is wrong) of each problem of a tuning file's content."""
    if not isinstance(content, dict):
        yield (), "holds no mapping"
        return
    for device, entry in content.items():
        if device == KERNELS:
            yield from _check_kernels(entry, spec)
            continue
        kinds = (("source", str), ("knobs", dict))
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in kinds):
            yield (device,), f"there is no source and knobs for {device}"
            continue
        for knob, value in entry["knobs"].items():
            at = (device, "knobs", knob)
            if knob == "dense_up_to":
                pairs = value if isinstance(value, list) else [None]
                if not all(isinstance(x, list) and len(x) == 2 and _whole(x[0], 1) and _whole(x[1], 0) for x in pairs):
                    yield at, "dense_up_to is no list of [batch, tokens]"
            elif knob not in MOST:
                yield at, f"{knob} is not a knob of packages{_meant(knob, MOST)}"
            elif not _whole(value, LEAST, MOST[knob]):
                yield at, f"{knob}: {value!r} is not a whole number from {LEAST} to {MOST[knob]}"


def _check_kernels(entries: Any, spec: Spec) -> Problems:
    if not isinstance(entries, dict):
        yield (KERNELS,), f"{KERNELS} is no mapping"
        return
    for target, entry in entries.items():
        at = (KERNELS, target)
        if target not in spec.targets:
            yield at, f"{target} is not a target of {spec.name}, which has {listed(spec.targets)}"
        elif not isinstance(entry, dict) or not isinstance(entry.get("values"), dict):
            yield at, f"there are no values for {target}"
        else:
            choices = kernel_choices(spec, target)
            for name, value in entry["values"].items():
                if name not in choices:
                    yield (*at, "values", name), f"{name} is not a constant of {target}{_meant(name, choices)}"
                elif not _whole(value, 0) or value not in choices[name]:
                    can = f"{listed(choices[name])} for {spec.name} on {target}"
                    yield (*at, "values", name), f"{name}: {value!r} is not {can}"


def _meant(word: str, known: dict[str, Any]) -> str:
    found = closest(word, list(known))
    return f"; {found} is" if found else f"; those are {', '.join(known)}"


def _line(text: str, at: tuple[str, ...]) -> int:
    """Line of the key that `at` leads to, from 1; JSON is YAML, whose parser knows lines."""
    try:
        node, line = yaml.compose(text, yaml.SafeLoader), 1
    except yaml.YAMLError:  # JSON with tabs
        return 1
    for key in at:
        pairs = [(k, v) for k, v in node.value if k.value == key]
        line, node = pairs[-1][0].start_mark.line + 1, pairs[-1][1]
    return line


def _whole(value: Any, low: int, high: int = 2**31 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
