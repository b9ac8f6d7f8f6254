"""Decode attention over a KV cache spread over the ranks of a process group: one selection, one exact merge."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from vashista_gen.errors import UsageError
from vashista_gen.integrations.context_parallel.selection import (
    in_whole_sequence,
    local_pages,
    local_tokens,
    select_pages,
)
from vashista_gen.integrations.context_parallel.shard import local_lengths

# torch renames it: all_gather_into_tensor is deprecated where all_gather_single is there
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class ContextParallelDecoder:
    """A package's decode over sequences whose pages lie round robin on the ranks of `group` (shard.py).

        decoder = ContextParallelDecoder(package, group)
        lens = decoder.local_lengths(seq_lens)                         # this rank's share, int32 [batch]
        summaries = package.summarize_pages(k_cache, block_table, lens, calibration=constants)
        out, lse = decoder.decode(q, k_cache, v_cache, block_table, seq_lens, summaries)

    constants: the `center` and `spread` of summaries of sub-page means must be the same on every rank: a calibration,
    or one rank's summaries of its own pages, broadcast. Where they differ, scores differ by more than rounding.

    Each rank has caches, block table and summaries of its own pages; q and seq_lens, tokens on all ranks, are the
    same on every rank, and so are the results: those of one process that holds all pages, up to the rounding of the
    merge (theory (L); on a GPU the parts are rounded to q's dtype first). The pages selected are the same, but for
    weights that differ in the last bits. Nothing is read back from the device; with NCCL a step can stand in a CUDA
    graph.

    Packages that keep fewer tokens than they route (candidates.tokens, .mass, .pages) choose from the scores of all
    ranks, which every rank then has: [batch, kv heads, group, P * page_size] float32 go round once a step. The tokens
    kept are those of one process, bit for bit, where the pages selected are the same. Short steps that one process reads
    whole (`tuning.dense_up_to`) are routed here as well.
    """

    def __init__(self, package: Any, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_initialized():
            raise UsageError("torch.distributed is not initialised", "call torch.distributed.init_process_group first")
        self.package = package
        self.group = group
        self.rank = dist.get_rank(group)
        self.ranks = dist.get_world_size(group)
        if self.rank < 0:
            raise UsageError("this process is no member of the group", "make the decoder on the group's ranks only")

    def local_lengths(self, seq_lens: torch.Tensor) -> torch.Tensor:
        """Tokens of each sequence on this rank; seq_lens int32 [batch], tokens on all ranks."""
        return local_lengths(seq_lens, self.package.SPEC["cache"]["page_size"], self.rank, self.ranks)

    def select_pages(
        self, q: torch.Tensor, summaries: Any, block_table: torch.Tensor, seq_lens: torch.Tensor
    ) -> torch.Tensor:
        """int32 [batch, kv heads, P]: this rank's pages among the P of the whole sequence, local, ascending, -1 padded.

        q [batch, query heads, d]; block_table int32 [batch, local pages]; seq_lens int32 [batch], tokens on all
        ranks. On all ranks together at most P pages of a (sequence, KV head). Called by every rank of the group.
        """
        scores = self.package.score_pages(q, summaries, block_table, self.local_lengths(seq_lens))
        pages = select_pages(self.package, scores, seq_lens, self.rank, self.ranks, self._gather)
        return local_pages(pages, self.rank, self.ranks)

    def decode(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        summaries: Any,
        *,
        budgets: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(out like q, lse float32 [batch, query heads], natural log) over the candidates of all ranks; called by all.

        Arguments as for select_pages and `package.decode`; budgets int32 [batch, kv heads], tokens on all ranks, the
        same on every rank. Raises UsageError for a package with a fallback for rows whose certificate fails, and for
        one whose candidates are projected on: neither is a merge of what ranks compute by themselves.
        """
        spec, lens = self.package.SPEC, self.local_lengths(seq_lens)
        self._refuse(spec, budgets)
        step = (q, k_cache, v_cache, block_table, lens)
        if _keeps_all(spec):
            selected = self.select_pages(q, summaries, block_table, seq_lens)
            return self._merge(*self.package.decode(*step, summaries, selected_pages=selected))
        listed = self.select_tokens(q, k_cache, block_table, seq_lens, summaries, budgets=budgets)
        return self._merge(*self.package.attend_tokens(*step, *listed))

    def select_tokens(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        summaries: Any,
        *,
        budgets: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """This rank's tokens among those kept of the whole sequence, as `package.select_tokens` lists tokens.

        (positions, heads) int32 [batch, kv heads, n], counts int32 [batch, kv heads]; positions are those of this
        rank's share, ascending, -1 padded. Called by every rank of the group.
        """
        scores = self.package.score_pages(q, summaries, block_table, self.local_lengths(seq_lens))
        pages = select_pages(self.package, scores, seq_lens, self.rank, self.ranks, self._gather)
        mine = local_pages(pages, self.rank, self.ranks)
        step = (q, k_cache, block_table, self.local_lengths(seq_lens), summaries)
        scores = self._gather(self.package.score_tokens(*step, mine))
        everyone = in_whole_sequence(scores, pages, self.package.SPEC["cache"]["page_size"])
        listed = self.package.choose_tokens(everyone, seq_lens, pages, budgets=budgets)
        return local_tokens(*listed, self.package.SPEC["cache"]["page_size"], self.rank, self.ranks)

    def _refuse(self, spec, budgets):
        if spec["certificate"]["kind"] != "none" and spec["fallback"] != "capped":
            raise UsageError(
                f"{spec['name']} computes again rows whose certificate fails: a rank certifies its share only",
                "generate a package with fallback: capped",
            )
        if spec["attention"]["solver"] != "softmax":
            raise UsageError(
                f"{spec['name']} projects on its candidates: projections on the ranks' shares do not merge",
                "generate a package with solver: softmax",
            )
        if budgets is not None and _keeps_all(spec):
            raise UsageError(
                f"{spec['name']} keeps every token it routes: it takes no budgets",
                "generate a package with candidates: {tokens: N}, or leave budgets out",
            )

    def decode_dense(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same over every token of all ranks."""
        return self._merge(*self.package.decode_dense(q, k_cache, v_cache, block_table, self.local_lengths(seq_lens)))

    def _merge(self, out, lse):
        return self.package.merge_states(self._gather(out), self._gather(lse))

    def _gather(self, x):
        """[ranks, *x.shape], the same on every rank."""
        gathered = x.new_empty(self.ranks * x.numel())
        _all_gather(gathered, x.contiguous().view(-1), self.group)
        return gathered.view(self.ranks, *x.shape)


def _keeps_all(spec):
    """Whether a step attends to every token of the pages it routes."""
    return spec["candidates"]["tokens"] == "all" and spec["candidates"].get("pages") is None
