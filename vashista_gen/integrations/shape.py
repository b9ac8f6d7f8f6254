"""The attention of a model, from its config.json or its GGUF file's metadata; needs neither torch nor transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vashista_gen.errors import MissingEnvironmentError, UsageError

DTYPES = ("bfloat16", "float16", "float32")
UNSCALED = ("gemma3n", "gemma4", "embedding_gemma2", "diffusion_gemma")  # their norms scale: logits are q.k itself
# every n-th layer attends to all, the others to a window, where the config does not list its layers
EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
FULL = "full_attention"
MOST = 1e30  # of any number here: what lies beyond is a mistake, and overflows
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class ModelShape:
    """What a spec needs of a model, and what else is worth saying.

    sm_scale is the factor on the logits, logits_soft_cap their cap or None. full_layers: the layers that attend to the
    whole context, out of num_layers. context: the most tokens that the model reads, None where it is not said.
    """

    kind: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    sm_scale: float
    logits_soft_cap: float | None
    dtype: str | None
    context: int | None
    num_layers: int
    full_layers: tuple[int, ...]

    @property
    def default_scale(self) -> bool:
        """Whether sm_scale is 1/sqrt(head_dim)."""
        return abs(self.sm_scale * self.head_dim**0.5 - 1) < 1e-6

    def __str__(self) -> str:
        cap = "" if self.logits_soft_cap is None else f", logits capped at {self.logits_soft_cap:g}"
        heads = f"{self.num_q_heads} query and {self.num_kv_heads} KV heads of {self.head_dim}"
        return f"{heads}, scale {self.sm_scale:.6g}{cap}"


def read_shape(path: Path) -> ModelShape:
    """The shape of a config.json, of a folder that holds one, or of a .gguf file; UsageError says what is wrong."""
    if path.is_dir():
        if (path / "config.json").is_file():
            return read_shape(path / "config.json")
        found = sorted(path.glob("*.gguf"))
        if len(found) != 1:
            have = f"{len(found)} .gguf files" if found else "no .gguf file"
            raise UsageError(f"{path} has no config.json and {have}", "name the file itself with --from-config")
        return read_shape(found[0])
    if not path.is_file():
        raise UsageError(f"no such file: {path}", "give a config.json, a model's folder or a .gguf file")
    if path.suffix == ".gguf":
        return _of_gguf(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} is not JSON: {error}", "give the config.json of a transformers model") from None
    if not isinstance(config, dict):
        raise UsageError(
            f"{path} holds a {type(config).__name__}, not an object", "give the config.json of a transformers model"
        )
    return shape_of(config, str(path))


def shape_of(config: Mapping[str, Any], where: str = "the model's config") -> ModelShape:
    """The shape of a transformers configuration as a dict; UsageError for a key that is missing or cannot be served."""
    if config.get("is_encoder_decoder"):
        raise UsageError(f"{where} is an encoder-decoder", "only decoders keep a cache that is worth routing")
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        config = {**{key: config[key] for key in ("torch_dtype", "dtype") if key in config}, **inner}
    kind = str(config.get("model_type", "model"))
    if config.get("kv_lora_rank"):
        raise UsageError(
            f"{where}: {kind} keeps a latent cache (kv_lora_rank {config['kv_lora_rank']})",
            "only attention with keys and values per head can be compiled",
        )
    num_q_heads = _count(config, where, "num_attention_heads", "n_head")
    num_kv_heads = _count(config, where, "num_global_key_value_heads", "num_key_value_heads", default=num_q_heads)
    head_dim = _count(config, where, "global_head_dim", "head_dim", default=0)
    if not head_dim:
        head_dim = _count(config, where, "hidden_size", "n_embd") // num_q_heads or 1
    num_layers = _count(config, where, "num_hidden_layers", "n_layer")
    if num_layers > MOST_LAYERS:
        raise UsageError(f"{where}: {num_layers} layers, more than the {MOST_LAYERS} of any model", "mend the config")
    types = _layer_types(config, kind, num_layers)
    cap = config.get("attn_logit_softcapping")
    return ModelShape(
        kind=kind,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        sm_scale=_scale(config, kind, head_dim, where),
        logits_soft_cap=None if not cap else _number(cap, where, "attn_logit_softcapping"),
        dtype=_dtype(config.get("dtype") or config.get("torch_dtype")),
        context=_count(config, where, "max_position_embeddings", "n_positions", default=0) or None,
        num_layers=num_layers,
        full_layers=tuple(i for i, name in enumerate(types) if name == FULL),
    )


def _count(config, where, *keys, default=None):
    """The first of `keys` that the config gives, a whole number above 0."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, list) and value and all(x == value[0] for x in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MOST:
            several = "a spec describes layers of one shape: write one for each shape by hand, see specs/README.md"
            raise UsageError(
                f"{where}: {key} is {value!r}, not one whole number above 0",
                several if isinstance(value, list) else "mend the config",
            )
        return value
    if default is None:
        raise UsageError(f"{where} has no {keys[0]}", "give the config.json of a decoder of transformers")
    return default


def _number(value, where, key):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < MOST:
        raise UsageError(f"{where}: {key} is {value!r}, not a number above 0", "mend the config")
    return float(value)


def _scale(config, kind, head_dim, where):
    if config.get("query_pre_attn_scalar"):
        return _number(config["query_pre_attn_scalar"], where, "query_pre_attn_scalar") ** -0.5
    if config.get("attention_multiplier"):
        return _number(config["attention_multiplier"], where, "attention_multiplier")
    return 1.0 if kind.startswith(UNSCALED) else head_dim**-0.5


def _dtype(name):
    name = str(name).removeprefix("torch.")
    return name if name in DTYPES else None


def _layer_types(config, kind, num_layers):
    """One word a layer; `full_attention` for the layers that attend to the whole context."""
    given = config.get("layer_types")
    if isinstance(given, list) and len(given) == num_layers:
        return given
    if not config.get("sliding_window") or config.get("use_sliding_window") is False:
        return [FULL] * num_layers
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or EVERY.get(kind)
    if not isinstance(every, int) or every < 1:
        return ["sliding_attention"] * num_layers
    return [FULL if (i + 1) % every == 0 else "sliding_attention" for i in range(num_layers)]


def _of_gguf(path):
    """The shape out of a GGUF file's metadata; keys as in the GGUF specification."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise MissingEnvironmentError("reading a .gguf file needs the package gguf", "pip install gguf") from None
    try:
        fields = GGUFReader(path).fields
        metadata = {key: field.contents() for key, field in fields.items() if not key.startswith("tokenizer.")}
    except Exception as error:  # the reader raises whatever its parsing meets
        raise UsageError(f"{path} is not a readable GGUF file: {error}", "fetch the file again") from None
    kind = metadata.get("general.architecture")
    own = {key.removeprefix(f"{kind}."): value for key, value in metadata.items() if key.startswith(f"{kind}.")}
    heads = own.get("attention.head_count")
    key_length, value_length = own.get("attention.key_length"), own.get("attention.value_length")
    if key_length and value_length and key_length != value_length:
        raise UsageError(
            f"{path}: keys of {key_length} and values of {value_length} elements", "only one head_dim can be compiled"
        )
    scale = own.get("attention.scale")
    # llama.cpp's rule for the 27B models of Gemma 2 and 3, which their files do not state
    if not scale and isinstance(heads, int) and (kind, own.get("block_count")) in {("gemma2", 46), ("gemma3", 62)}:
        scale = (own.get("embedding_length", heads) / heads) ** -0.5
    return shape_of(
        {
            "model_type": kind,
            "num_attention_heads": heads,
            "num_key_value_heads": own.get("attention.head_count_kv"),
            "head_dim": key_length,
            "hidden_size": own.get("embedding_length"),
            "num_hidden_layers": own.get("block_count"),
            "max_position_embeddings": own.get("context_length"),
            "sliding_window": own.get("attention.sliding_window"),
            "attn_logit_softcapping": own.get("attn_logit_softcapping"),
            "attention_multiplier": scale,
            "kv_lora_rank": own.get("attention.kv_lora_rank"),
        },
        str(path),
    )
