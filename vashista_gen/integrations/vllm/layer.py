"""One attention layer with the call that vLLM makes of its attention implementations."""

from __future__ import annotations

from typing import Any

import torch

from vashista_gen.errors import UsageError
from vashista_gen.integrations.summary_store import SummaryStore
from vashista_gen.integrations.vllm.layout import kv_halves
from vashista_gen.integrations.vllm.metadata import DecodeStep
from vashista_gen.integrations.vllm.write import write_tokens


class SparseAttentionImpl:
    """Writes a step's keys and values, keeps the page summaries current, and decodes sparsely.

    `forward` has the signature of vLLM's AttentionImpl.forward. A batch with a request of several new tokens (a
    prefill, or drafts to verify) is not for a decode kernel: its tokens are written and summarised here, and
    `prefill`, called with the same arguments after that, gives its output; it must not write the cache again. Without
    `prefill` such a batch raises UsageError. order: as for kv_halves. One SummaryStore may serve every layer;
    calibration: this layer's, for `package.summarize_pages`. Not registered with vLLM: see the package's docstring.

    Every token must come through `forward` (or `append`): a page that something else fills, such as a KV connector that
    loads it from another machine, has no summary until `summaries.update` is called for it.
    """

    def __init__(
        self,
        package: Any,
        *,
        order: str = "kv_first",
        prefill: Any = None,
        summaries: SummaryStore | None = None,
        calibration: Any = None,
    ) -> None:
        self.package = package
        self.calibration = calibration
        self.order = order
        self.prefill = prefill
        self.summaries = SummaryStore(package) if summaries is None else summaries

    def append(
        self, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, step: DecodeStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes key and value [tokens, kv heads, d] by slot, renews the summaries; returns (k_cache, v_cache), views.

        The first call for a cache allocates its summaries: make it before a CUDA graph is captured. Of a package with
        key sketches and no calibration it is also the one whose tokens give the centres; they are not renewed.
        """
        k, v = kv_halves(kv_cache, self.package, self.order)
        write_tokens(key, value, k, v, step.slot_mapping[: step.num_tokens], self.package.SPEC["cache"]["layout"])
        if k in self.summaries:
            self.summaries.update(k, v, step.block_table, step.old_seq_lens, step.seq_lens)
        else:
            self.summaries.summarize(k, v, step.block_table, step.seq_lens, calibration=self.calibration)
        return k, v

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor | None = None,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query [tokens, heads, d]; key and value [tokens, kv heads, d]; output as query, or [tokens, heads * d].

        Without attn_metadata (vLLM's profiling run) the output is zero. Rows of padding tokens are left as they are.
        """
        if output_scale is not None or output_block_scale is not None:
            raise UsageError("a quantised output is not supported", "leave output_scale and output_block_scale out")
        output = torch.zeros_like(query) if output is None else output
        if attn_metadata is None:
            return output.zero_()
        step = DecodeStep.of(attn_metadata)
        k, v = self.append(key, value, kv_cache, step)
        if step.longest_query > 1:
            if self.prefill is None:
                raise UsageError(
                    f"a batch with {step.longest_query} new tokens in a request: only single tokens are decoded here",
                    "give SparseAttentionImpl a prefill: dense attention over the cache, called as forward is",
                )
            return self.prefill(layer, query, key, value, kv_cache, attn_metadata, output)
        rows = min(step.num_tokens, step.seq_lens.shape[0])
        out = output.view(query.shape)[:rows]
        self.package.decode(
            query[:rows], k, v, step.block_table[:rows], step.seq_lens[:rows], self.summaries.of(k),
            max_seq_len=step.max_seq_len, out=out,
        )  # fmt: skip
        return output
