"""The op on raw tensors: a paged cache, its summaries, one decode step.

python -m vashista_gen.examples.ten_lines
"""

import torch

import vashista_gen.generated.smollm2_135m as op  # or a copy of that folder, anywhere


def main() -> tuple[torch.Tensor, torch.Tensor]:
    """Decodes one token for sequences of 8000 and 5000; (out [2, 9, 64], lse [2, 9])."""
    draw = torch.Generator().manual_seed(0)
    k_cache, v_cache = (torch.randn(1024, 16, 3, 64, generator=draw) for _ in "kv")  # pages of 16 tokens, 3 KV heads
    block_table = torch.randperm(1024, dtype=torch.int32, generator=draw).view(2, 512)  # each sequence's pages
    seq_lens = torch.tensor([8000, 5000], dtype=torch.int32)
    q = torch.randn(2, 9, 64, generator=draw)

    summaries = op.summarize_pages(k_cache, block_table, seq_lens)  # once, after the prefill
    out, lse = op.decode(q, k_cache, v_cache, block_table, seq_lens, summaries)
    op.update_summaries(summaries, k_cache, block_table, seq_lens - 1, seq_lens)  # after each token appended
    dense, _ = op.decode_dense(q, k_cache, v_cache, block_table, seq_lens)

    print(
        f"out {tuple(out.shape)}, lse {tuple(lse.shape)}; largest difference to dense {(out - dense).abs().max():.3f}"
    )
    return out, lse


if __name__ == "__main__":
    main()
