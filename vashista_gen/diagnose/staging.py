"""A spec's package for measuring: it certifies every head at every step and never falls back.

What a fallback repairs cannot be held against the truth, and a margin is measured before its file exists. So the spec
is changed in those points alone, rendered into a scratch folder and imported from there; its kernels are the spec's.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from vashista_gen import emit, spec
from vashista_gen.errors import UsageError
from vashista_gen.plan import make_plan

_numbers = itertools.count()


def load_unfinished(path: Path) -> spec.Spec:
    """The spec at `path`, whose calibration files need not exist yet; SpecError for every other problem."""
    with tempfile.TemporaryDirectory() as scratch:
        text = _read(path)
        _place(text, Path(scratch), None)
        return spec.loads(text, str(path), Path(scratch))


@contextmanager
def measuring(path: Path, calibration: dict[str, Any] | None = None) -> Iterator[ModuleType]:
    """The imported package, while its folder exists.

    calibration: the content of a calibration file, read in place of the files that the spec names.
    """
    text = _read(path)
    with tempfile.TemporaryDirectory() as scratch:
        folder = path.parent
        if calibration is not None:
            folder = Path(scratch)
            _place(text, folder, calibration)
        spec.loads(text, str(path), folder)  # what is wrong with it is said of the lines that the user wrote
        loaded = spec.loads(_changed(text), str(path), folder).always_routed()
        package = Path(scratch, loaded.name)
        for name, content in emit.render(make_plan(loaded)).items():
            target = package / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")
        name = f"vashista_gen_measuring_{next(_numbers)}"
        found = importlib.util.spec_from_file_location(
            name, package / "__init__.py", submodule_search_locations=[str(package)]
        )
        module = sys.modules[name] = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(module)
            yield module
        finally:
            for loaded_name in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
                del sys.modules[loaded_name]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"cannot read {path}: {reason}", "give the path of a spec, such as specs/tiny.yaml") from None


def _changed(text: str) -> str:
    """The spec's text with fallback capped and a certificate at every step, if it has one at all."""
    content = yaml.safe_load(text)
    certificate = content.get("certificate")
    if isinstance(certificate, dict):
        content["certificate"] = {k: v for k, v in certificate.items() if k not in ("every", "heads", "expand_pages")}
    return yaml.safe_dump(content | {"fallback": "capped"}, sort_keys=False)


def _place(text: str, folder: Path, calibration: dict[str, Any] | None) -> None:
    """Writes the calibration files that a spec names into `folder`: those given, or one layer that changes nothing."""
    try:
        content = yaml.safe_load(text)
        model = content["model"]
        heads, head_dim = int(model["num_kv_heads"]), int(model["head_dim"])
        names = {
            content.get(section, {}).get(key) for section, key in (("sketch", "balance"), ("certificate", "margin"))
        }
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return  # the loader says what is wrong
    neutral = {"center": [[0.0] * head_dim] * heads, "balance": [[1.0] * (head_dim // 2)] * heads, "margin": 0.0}
    for name in names - {None}:
        if isinstance(name, str) and Path(name).name == name:
            (folder / name).write_text(json.dumps(calibration or {"layers": [neutral]}), encoding="utf-8")
