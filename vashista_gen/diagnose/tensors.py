"""Attention inputs out of a .safetensors file, for models that transformers does not run here.

| tensor      | shape, any floating dtype                          | meaning                                     |
| ----------- | -------------------------------------------------- | ------------------------------------------- |
| `q`         | `[layers, query heads, queries, d]`                | queries after RoPE                          |
| `k`, `v`    | `[layers, kv heads, tokens, d]`                    | keys after RoPE, values; d of v may differ  |
| `positions` | int `[queries]`, optional                          | token of each query; the last ones if absent |

The axis of layers may be left out of all three. The file's metadata may give `sm_scale` (1/sqrt(d) if absent).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vashista_gen.diagnose.layer import Layer
from vashista_gen.errors import UsageError

SHAPES = "q [layers, query heads, queries, d], k and v [layers, kv heads, tokens, d]; vashista_gen/diagnose/README.md"


def read(path: Path) -> list[Layer]:
    """The file's layers. UsageError for a tensor that is missing, of a wrong shape or dtype, or not finite."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            missing = [name for name in ("q", "k", "v") if name not in names]
            if missing:
                raise UsageError(f"{path}: no tensor {', '.join(missing)}; it holds {sorted(names)}", f"give {SHAPES}")
            q, k, v = (file.get_tensor(name) for name in ("q", "k", "v"))
            positions = file.get_tensor("positions") if "positions" in names else None
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {path}: {error}", f"give a .safetensors file with {SHAPES}") from None
    q, k, v = (x[None] if x.dim() == 3 else x for x in (q, k, v))
    _check(path, q, k, v)
    positions = _positions(path, positions, q.shape[2], k.shape[2])
    scale = _scale(path, metadata.get("sm_scale"), q.shape[3])
    return [Layer(i, q[i].float(), k[i].float(), v[i].float(), positions, scale) for i in range(q.shape[0])]


def _check(path: Path, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    shown = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if not all(x.dim() == 4 and x.numel() for x in (q, k, v)):
        raise UsageError(f"{path}: {shown}: not 3 or 4 axes each", f"give {SHAPES}")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise UsageError(f"{path}: {shown} do not fit together", f"give {SHAPES}")
    if q.shape[1] % k.shape[1]:
        raise UsageError(f"{path}: {q.shape[1]} query heads are no multiple of {k.shape[1]} kv heads", f"give {SHAPES}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not x.is_floating_point():
            raise UsageError(f"{path}: {name} is {x.dtype}", "store it as float32, float16 or bfloat16")
        if not bool(torch.isfinite(x).all()):
            where = [int(i) for i in (~torch.isfinite(x)).nonzero()[0]]
            raise UsageError(f"{path}: {name}{where} is not finite", "store keys of tokens that exist, nothing else")


def _positions(path: Path, given: torch.Tensor | None, queries: int, tokens: int) -> torch.Tensor:
    if given is None:
        if queries > tokens:
            raise UsageError(f"{path}: {queries} queries and {tokens} tokens", "give `positions`, int [queries]")
        return torch.arange(tokens - queries, tokens)
    right = given.dim() == 1 and len(given) == queries and not given.is_floating_point()
    if not right or int(given.min()) < 0 or int(given.max()) >= tokens or bool((given.diff() < 0).any()):
        raise UsageError(
            f"{path}: positions {list(given.shape)} of {given.dtype} for {queries} queries over {tokens} tokens",
            f"give int64 [{queries}], ascending, each from 0 to {tokens - 1}",
        )
    return given.long()


def _scale(path: Path, given: str | None, head_dim: int) -> float:
    if given is None:
        return head_dim**-0.5
    try:
        scale = float(given)
    except ValueError:
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise UsageError(f"{path}: metadata sm_scale {given!r}", "give a number greater than 0, or leave it out")
    return scale
