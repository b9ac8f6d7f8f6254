"""The demo's figures: how far sparse attention is from dense, in outputs, in next tokens, in bytes and in time."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from vashista_gen.plan import cost, make_plan
from vashista_gen.spec import load, specs_root


def divergence(dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
    """KL(dense || sparse) of next-token distributions, nats: logits [steps, vocabulary] -> float64 [steps]."""
    p, q = (torch.log_softmax(x.double(), dim=-1) for x in (dense, sparse))
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def agreement(dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
    """Whether the most likely next token is the same: logits [steps, vocabulary] -> bool [steps]."""
    return dense.argmax(-1) == sparse.argmax(-1)


def perplexity(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """exp of the mean negative log-likelihood: logits [steps, vocabulary], the tokens that came [steps]."""
    return float(torch.nn.functional.cross_entropy(logits.double(), targets).exp())


def output_error(out: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """||out - truth|| / ||truth|| of each head: [batch, heads, d] twice -> [batch, heads]."""
    return (out - truth).norm(dim=-1) / truth.norm(dim=-1).clamp(min=torch.finfo(truth.dtype).tiny)


def mass_kept(lse: torch.Tensor, lse_all: torch.Tensor) -> torch.Tensor:
    """1 - delta = exp(lse of the kept tokens - lse of all): the part of the softmax that was not left out."""
    return (lse - lse_all).exp().clamp(max=1)


class Probe:
    """A `watch` for dense steps: computes the same attention sparsely as well and notes what that would have changed.

    So each error is that of one op on exact inputs, not of the layers before it.
    """

    def __init__(self, package: Any, num_layers: int) -> None:
        self._package = package
        self._errors: list[list] = [[] for _ in range(num_layers)]
        self._kept: list[list] = [[] for _ in range(num_layers)]

    def __call__(self, layer: int, q: torch.Tensor, cache: Any, out: torch.Tensor, lse: torch.Tensor) -> None:
        # routing alone comes first, for its time: what it reads is still cold then
        self._package.select_pages(q, cache.summaries, cache.block_table, cache.seq_lens)
        tensors = (q, cache.k_cache, cache.v_cache, cache.block_table, cache.seq_lens, cache.summaries)
        sparse_out, sparse_lse = self._package.decode(*tensors)
        self._errors[layer].append(output_error(sparse_out, out)[0])
        self._kept[layer].append(mass_kept(sparse_lse, lse)[0])

    @property
    def errors(self) -> torch.Tensor:
        """Relative error of the attention output, [layers, steps, heads]."""
        return torch.stack([torch.stack(steps) for steps in self._errors])

    @property
    def kept(self) -> torch.Tensor:
        """Softmax mass kept, [layers, steps, heads]."""
        return torch.stack([torch.stack(steps) for steps in self._kept])


def times(seconds: Sequence[float]) -> dict[str, float]:
    """Median and fastest tenth, microseconds."""
    ordered = sorted(seconds)
    return {"median_us": statistics.median(ordered) * 1e6, "p10_us": ordered[len(ordered) // 10] * 1e6}


def bytes_read(name: str, length: int, kv_dtype: str = "float32") -> dict[str, int]:
    """Bytes of one layer's cache that a step of the shipped spec `name` reads at a length, as `plan.cost` counts them.

    By part, and the sums `sparse` and `dense`. kv_dtype: what the cache holds here, which on a CPU is not the spec's.
    """
    spec = load(str(specs_root().joinpath(f"{name}.yaml")))
    here = dataclasses.replace(spec, cache=dataclasses.replace(spec.cache, kv_dtype=kv_dtype))
    plan = dataclasses.replace(make_plan(spec), spec=here)
    sparse = dataclasses.asdict(cost.sparse_bytes(plan, length, steps=1))
    return {**sparse, "sparse": sum(sparse.values()), "dense": cost.dense_bytes(plan, length).total}


def figures(
    logits: dict[str, torch.Tensor], targets: torch.Tensor, probe: Probe, clocks: dict[str, Any], read: dict[str, int]
) -> dict[str, Any]:
    """Everything the table and the picture show, as plain numbers. logits: of each way, [steps, vocabulary]."""
    kl = divergence(logits["dense"], logits["sparse"])
    same = agreement(logits["dense"], logits["sparse"])
    errors, kept = probe.errors.double(), probe.kept.double()
    sparse = [
        a + b
        for a, b in zip(clocks["sparse"].seconds["decode"], clocks["sparse"].seconds["update_summaries"], strict=True)
    ]
    return {
        "time_per_token_and_layer": {
            "torch_sdpa": times(clocks["contiguous"].seconds["sdpa"]),
            "dense_op": times(clocks["dense"].seconds["decode_dense"]),
            "sparse_op": times(sparse),
            "sparse_op_routing": times(clocks["dense"].seconds["select_pages"]),
            "sparse_op_summary_update": times(clocks["sparse"].seconds["update_summaries"]),
        },
        "next_token_agreement": float(same.double().mean()),
        "kl_nats_mean": float(kl.mean()),
        "output_error_mean": float(errors.mean()),
        "output_error_p90": float(errors.flatten().quantile(0.9)),
        "mass_kept_mean": float(kept.mean()),
        "bytes_read_per_step_and_layer": read,
        "share_of_kv_bytes_read": read["sparse"] / read["dense"],
        "perplexity": {name: perplexity(x, targets) for name, x in logits.items()},
        "per_step": {"kl_nats": kl.tolist(), "same_next_token": same.tolist()},
        "per_layer_and_head": {"mass_kept": kept.mean(1).tolist()},
    }
