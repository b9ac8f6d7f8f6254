"""YAML file or text -> `Spec`, or a SpecError with every problem of the file."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from vashista_gen.errors import UsageError
from vashista_gen.spec.calibration import read_calibration
from vashista_gen.spec.constraints import check_constraints
from vashista_gen.spec.fields import Values, read_mapping
from vashista_gen.spec.model import Source, Spec
from vashista_gen.spec.nodes import compose, decode
from vashista_gen.spec.report import Report
from vashista_gen.spec.setting import REQUIRED, Setting, settings_of
from vashista_gen.spec.tuning import read_tuning


def load(path: str | Path) -> Spec:
    """Read and check the spec at `path`.

    Raises SpecError with all problems of the file or else of a tuning beside it, UsageError when it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise UsageError(
            f"cannot read {path}: {reason}", "give the path of a spec, such as specs/llama3_8b.yaml"
        ) from None
    return loads(data, _shown(Path(path)), Path(path).parent)


def loads(text: str | bytes, file: str = "<text>", folder: Path | None = None) -> Spec:
    """Check the text of a spec; messages show `file`, whose stem must be the spec's name if it ends in .yaml or .yml.

    Calibration files that it names, and its tuning, are read from `folder`. Raises SpecError with all problems of the
    text, or else of the tuning.
    """
    report = Report(file)
    decoded = decode(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), report)
    root = None if decoded is None else compose(decoded, report)
    if decoded is None or root is None:
        report.raise_if_any()
        raise AssertionError("a text without a spec has at least one problem")
    values = Values()
    read_mapping(root, Spec, "", values, report)
    _fill_defaults(Spec, "", values)
    check_constraints(values, report)
    report.raise_if_any()
    calibration = read_calibration(values, folder, report)
    report.raise_if_any()
    sha256 = hashlib.sha256(decoded.encode("utf-8")).hexdigest()
    source = Source(file, sha256, dict(values.lines))
    spec: Spec = _build(Spec, "", values, source=source, calibration=calibration)
    tuning, kernels = read_tuning(spec, folder)
    return replace(spec, tuning=tuning, kernels=kernels)


def _shown(path: Path) -> str:
    """The path relative to the working directory when it lies below it, as given otherwise; with forward slashes."""
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return path.as_posix()


def _fill_defaults(section: type, prefix: str, values: Values) -> None:
    """Give every key that is not in the file its default, as far as the keys it depends on are valid."""
    for key, setting in settings_of(section).items():
        path = prefix + key
        if setting.is_section:
            _fill_defaults(setting.kind, f"{path}.", values)
        elif path in values.lines or (setting.default is REQUIRED and not setting.default_key):
            continue
        elif setting.default_key:
            if setting.default_key in values:
                values[path] = values[setting.default_key]
        elif not setting.sibling or setting.applies(_sibling(setting, prefix, values)):
            values[path] = None if setting.word else setting.default
        else:
            values[path] = None


def _sibling(setting: Setting, prefix: str, values: Values) -> Any:
    """The value that `setting` depends on; one that nothing equals when it is not valid."""
    return values.get(prefix + setting.sibling, REQUIRED)


def _build(section: type, prefix: str, values: Values, **extra: Any) -> Any:
    """The dataclass of a section from checked values; the words `default` and `all` are resolved here."""
    fields: dict[str, Any] = {}
    for key, setting in settings_of(section).items():
        fields[key] = _build(setting.kind, f"{key}.", values) if setting.is_section else values[prefix + key]
    if "sm_scale" in fields and fields["sm_scale"] is None:
        fields["sm_scale"] = 1.0 / math.sqrt(values["model.head_dim"])
    return section(**fields, **extra)
