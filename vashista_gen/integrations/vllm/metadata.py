"""What a package needs to know of a step, from vLLM's attention metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class DecodeStep:
    """Tensors of a step, on the device: block_table int32 [batch, max_blocks], seq_lens and old_seq_lens int32 [batch].

    seq_lens counts the step's own tokens, old_seq_lens does not; a padding request has length 0 or no new token.
    slot_mapping int64 [tokens]. num_tokens and longest_query are numbers on the host: the tokens that are no padding,
    and the most new tokens of a request (1: every request decodes); max_seq_len, too: no request is longer. A graph
    that is captured with a small one reads every replay whole: rightly, and slowly where requests have become long.
    """

    block_table: torch.Tensor
    seq_lens: torch.Tensor
    old_seq_lens: torch.Tensor
    slot_mapping: torch.Tensor
    num_tokens: int
    longest_query: int
    max_seq_len: int | None = None

    @classmethod
    def of(cls, metadata: Any) -> DecodeStep:
        """From vLLM's FlashAttentionMetadata or CommonAttentionMetadata, or anything with their attributes.

        query_start_loc int32 [batch + 1]; seq_lens int32 [batch]; block_table or block_table_tensor; slot_mapping;
        num_actual_tokens; max_query_len; max_seq_len, if it is there. Nothing is read from the device, and nothing is
        copied but old_seq_lens.
        """
        table = getattr(metadata, "block_table", None)
        table = metadata.block_table_tensor if table is None else table
        batch = metadata.seq_lens.shape[0]
        starts = metadata.query_start_loc[: batch + 1]
        old = (metadata.seq_lens - (starts[1:] - starts[:-1])).clamp(min=0)
        return cls(
            table[:batch], metadata.seq_lens.int(), old.int(), metadata.slot_mapping,
            metadata.num_actual_tokens, metadata.max_query_len, getattr(metadata, "max_seq_len", None),
        )  # fmt: skip
