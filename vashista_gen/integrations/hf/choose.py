"""Which generated package fits a model, and why the others do not."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from vashista_gen.errors import UsageError
from vashista_gen.integrations.shape import ModelShape, shape_of


def model_shape(model: Any) -> ModelShape:
    """The shape of a transformers model; its attention modules have the last word on the scale."""
    shape = shape_of(model.config.to_dict(), type(model).__name__)
    scales = {float(m.scaling) for m in attention_modules(model, shape.full_layers) if hasattr(m, "scaling")}
    if len(scales) > 1:
        raise UsageError(
            f"the layers of {type(model).__name__} scale their logits by {sorted(scales)}",
            "attach packages only to models whose full-attention layers are alike",
        )
    return replace(shape, sm_scale=scales.pop()) if scales else shape


def attention_modules(model: Any, layers: tuple[int, ...] | None = None) -> list[Any]:
    """The decoder's modules with a layer_idx and a projection of keys, those of `layers` if given."""
    found = [m for m in model.get_decoder().modules() if hasattr(m, "layer_idx") and hasattr(m, "k_proj")]
    return [m for m in found if layers is None or m.layer_idx in layers]


def differences(package: ModuleType, shape: ModelShape) -> list[str]:
    """In words, what the package was compiled for and the model has not; empty where it fits."""
    spec = package.SPEC["model"]
    found = [
        f"{key} {getattr(shape, key)} against {spec[key]}"
        for key in ("num_q_heads", "num_kv_heads", "head_dim", "logits_soft_cap")
        if getattr(shape, key) != spec[key]
    ]
    if abs(shape.sm_scale - spec["sm_scale"]) > 1e-6 * shape.sm_scale:
        found.append(f"sm_scale {shape.sm_scale:g} against {spec['sm_scale']:g}")
    return found


def choose(model: Any, package: ModuleType | None = None) -> ModuleType:
    """The one generated package of the model's shape, or `package` if it fits; UsageError with the next step."""
    shape = model_shape(model)
    if package is not None:
        found = differences(package, shape)
        if found:
            raise UsageError(
                f"{type(model).__name__} and the package {package.SPEC['name']} differ: {'; '.join(found)}",
                _write(model),
            )
        return package
    there = generated()
    fitting = [one for one in there if not differences(one, shape)]
    if not fitting:
        names = ", ".join(one.SPEC["name"] for one in there)
        raise UsageError(
            f"no generated package fits {type(model).__name__}: {shape}; there are {names or 'none'}", _write(model)
        )
    if len(fitting) > 1:
        names = [one.SPEC["name"] for one in fitting]
        raise UsageError(
            f"{len(names)} generated packages fit {type(model).__name__}: {', '.join(names)}",
            f"choose one: import vashista_gen.generated.{names[0]} as package; hf.attach(model, package)",
        )
    return fitting[0]


def generated() -> list[ModuleType]:
    """Every package under vashista_gen.generated, by name."""
    import vashista_gen.generated as folder

    names = sorted(one.name for one in pkgutil.iter_modules(folder.__path__) if one.ispkg)
    return [importlib.import_module(f"{folder.__name__}.{name}") for name in names]


def _write(model):
    path = Path(str(getattr(model.config, "_name_or_path", "") or ""))
    source = path if str(path) != "." and path.is_dir() else "config.json"
    return (
        f"write the spec of its shape with vashista-gen new --from-config {source}, compile it with "
        "vashista-gen generate specs/<name>.yaml"
    )
