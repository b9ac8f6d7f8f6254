"""Who computes attention for some rows of a layer: a compiled op, sparse or dense, or an oracle in torch."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch

from vashista_gen.eval.pages import SharedPages

ORACLE_RECENT = 32  # tokens at the end that the oracle always keeps, as it keeps the first page


class Attender(Protocol):
    """Attention of some rows of one layer: q [rows, heads, d] -> [rows, heads, d], over what the pages hold now."""

    def attend(self, q: torch.Tensor) -> torch.Tensor: ...


class Dense:
    """decode_dense of a package."""

    def __init__(self, package: ModuleType, pages: SharedPages, rows: slice) -> None:
        self._package, self._pages, self._rows = package, pages, rows

    def attend(self, q: torch.Tensor) -> torch.Tensor:
        """q [rows, heads, d] -> [rows, heads, d] over every token."""
        pages, rows = self._pages, self._rows
        return self._package.decode_dense(
            q, pages.k_cache, pages.v_cache, pages.block_table[rows], pages.seq_lens[rows]
        )[0]


COUNT_EVERY = 8  # steps between two counts of what a mass keeps


class Sparse:
    """decode of a package, with summaries of its own that follow the cache.

    kept: tokens that a KV head keeps on average, now and then counted, for specs that keep a share of the mass.
    """

    def __init__(self, package: ModuleType, pages: SharedPages, rows: slice, layer: int) -> None:
        self._package, self._pages, self._rows = package, pages, rows
        calibration = package.calibration(layer) if hasattr(package, "calibration") else None
        first = slice(rows.start, rows.start + 1)  # the prefix is the same for all
        self._lens = pages.seq_lens[rows].clone()
        prefix = pages.k_cache, pages.block_table[first], pages.seq_lens[first]
        self._summaries = package.summarize_pages(*prefix, v_cache=pages.v_cache, calibration=calibration)
        self._counts = package.SPEC["candidates"].get("mass") is not None
        self._steps, self.kept = 0, None
        refreshes = package.SPEC["routing"]["refresh"] > 1
        self._routing = package.new_routing(rows.stop - rows.start) if refreshes else None

    def attend(self, q: torch.Tensor) -> torch.Tensor:
        """q [rows, heads, d] -> [rows, heads, d] over the candidates."""
        pages = self._pages
        table, lens = pages.block_table[self._rows], pages.seq_lens[self._rows]
        before, self._lens = self._lens, lens.clone()
        self._package.update_summaries(self._summaries, pages.k_cache, table, before, lens, v_cache=pages.v_cache)
        if self._counts and self._steps % COUNT_EVERY == 0:
            counts = self._package.select_tokens(q, pages.k_cache, table, lens, self._summaries)[2]
            self.kept = float(counts.double().mean())
        more = {"routing": self._routing, "step": self._steps} if self._routing is not None else {}
        self._steps += 1
        return self._package.decode(q, pages.k_cache, pages.v_cache, table, lens, self._summaries, **more)[0]


@dataclass(frozen=True)
class Formula:
    """How logits become weights: softmax(cap tanh(scale <q, k> / cap) / epsilon), without the cap where it is None."""

    scale: float
    cap: float | None = None
    epsilon: float = 1.0

    def logits(self, dots: torch.Tensor) -> torch.Tensor:
        """Of inner products <q, k>, any shape."""
        scaled = dots * self.scale
        return (scaled if self.cap is None else self.cap * (scaled / self.cap).tanh()) / self.epsilon


class Oracle:
    """Softmax over the `tokens` tokens of the largest exact weight, summed over a KV head's query heads.

    The first page and the last ORACLE_RECENT tokens are always among them: what no router can beat at this budget.
    """

    def __init__(self, tokens: int, formula: Formula, pages: SharedPages, rows: slice) -> None:
        self._tokens, self._formula, self._pages, self._rows = tokens, formula, pages, rows

    def attend(self, q: torch.Tensor) -> torch.Tensor:
        """q [rows, heads, d] -> [rows, heads, d] over the chosen tokens."""
        parts = self._pages.parts(self._rows)
        logits = two_part_logits(q, parts, self._formula)
        weight = logits.softmax(-1).sum(2)  # [rows, kv heads, tokens]
        weight[..., : self._pages.page_size] = 2 * logits.shape[2]  # above any sum of probabilities
        weight[..., -ORACLE_RECENT:] = 2 * logits.shape[2]
        kept = weight.topk(min(self._tokens, weight.shape[-1]), dim=-1, sorted=False).indices
        dropped = torch.ones_like(weight, dtype=torch.bool).scatter_(-1, kept, False)
        return two_part_output(logits.masked_fill_(dropped[:, :, None], -torch.inf), parts)


class Window:
    """Dense attention of every row within a window of the last tokens: prefix [tokens, kv heads, d], rows behind it."""

    def __init__(self, window: int, k: torch.Tensor, v: torch.Tensor, rows: int, room: int) -> None:
        self._window, self._used = window, 0
        self._prefix = k[-window:], v[-window:]
        self._own = tuple(torch.zeros(rows, room, *k.shape[1:]) for _ in range(2))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, formula: Formula) -> torch.Tensor:
        """q [rows, heads, d], k and v [rows, kv heads, d] of the new token -> [rows, heads, d]."""
        self._own[0][:, self._used], self._own[1][:, self._used] = k, v
        self._used += 1
        shared = max(0, self._window - self._used)
        begin = max(0, self._used - self._window)
        prefix = (x[len(x) - min(shared, len(x)) :] for x in self._prefix)
        parts = (*prefix, *(x[:, begin : self._used] for x in self._own))
        return two_part_output(two_part_logits(q, parts, formula), parts)


def two_part_logits(q: torch.Tensor, parts: tuple[torch.Tensor, ...], formula: Formula) -> torch.Tensor:
    """[rows, kv heads, group, tokens] of q [rows, heads, d] over a shared prefix and each row's own tokens.

    One matrix product serves all rows for the prefix: its keys are read once.
    """
    k_prefix, _, k_own, _ = parts
    grouped = q.unflatten(1, (k_prefix.shape[1], -1))  # [rows, kv heads, group, d]
    shared = torch.einsum("rhgd,thd->rhgt", grouped, k_prefix)
    own = torch.einsum("rhgd,rthd->rhgt", grouped, k_own)
    return formula.logits(torch.cat([shared, own], dim=-1))


def two_part_output(logits: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """softmax(logits) V, [rows, heads, d], of the logits of `two_part_logits`."""
    _, v_prefix, _, v_own = parts
    weights = logits.softmax(-1)
    shared, own = weights.split([len(v_prefix), v_own.shape[1]], dim=-1)
    out = torch.einsum("rhgt,thd->rhgd", shared, v_prefix) + torch.einsum("rhgt,rthd->rhgd", own, v_own)
    return out.flatten(1, 2)
