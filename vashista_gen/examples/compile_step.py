"""torch.compile(fullgraph=True) over the decode step of an attention layer: no graph break, one compilation.

python -m vashista_gen.examples.compile_step [cuda]
"""

import sys
from typing import NamedTuple

import torch

import vashista_gen.generated.smollm2_135m as op

PAGE, HEADS, KV_HEADS, DIM = 16, 9, 3, 64
WIDTH = 576  # of the hidden state
COLUMNS = (HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM)  # of q, k and v


class State(NamedTuple):
    """What a layer keeps: weights, the paged cache with its summaries, table and lengths; all on one device."""

    w_in: torch.Tensor
    w_out: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    summaries: op.Summaries


def dtype_on(device: str) -> torch.dtype:
    """What the package is compiled for."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def new_state(batch: int, max_pages: int, lengths: list[int], device: str = "cpu") -> State:
    """Random weights and caches; sequences of `lengths` tokens, with room for max_pages pages each."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw).to(device, dtype_on(device))

    k_cache, v_cache = (normal(batch * max_pages, PAGE, KV_HEADS, DIM) for _ in "kv")
    table = torch.arange(batch * max_pages, dtype=torch.int32, device=device).view(batch, max_pages)
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    summaries = op.summarize_pages(k_cache, table, seq_lens)
    w_in, w_out = normal(WIDTH, sum(COLUMNS)) / WIDTH**0.5, normal(COLUMNS[0], WIDTH) / WIDTH**0.5
    return State(w_in, w_out, k_cache, v_cache, table, seq_lens, summaries)


def step(x: torch.Tensor, state: State) -> torch.Tensor:
    """Appends one token to each sequence and attends with it; x, result [batch, WIDTH]. Nothing asks the device."""
    q, k, v = (x @ state.w_in).split(COLUMNS, dim=1)
    place = state.seq_lens.long()  # of the new token
    page = state.block_table.gather(1, (place // PAGE)[:, None])[:, 0].long()
    state.k_cache[page, place % PAGE] = k.reshape(-1, KV_HEADS, DIM)
    state.v_cache[page, place % PAGE] = v.reshape(-1, KV_HEADS, DIM)
    old_lens = state.seq_lens.clone()
    state.seq_lens.add_(1)
    op.update_summaries(state.summaries, state.k_cache, state.block_table, old_lens, state.seq_lens)
    caches = (state.k_cache, state.v_cache, state.block_table, state.seq_lens, state.summaries)
    out, _ = op.decode(q.reshape(-1, HEADS, DIM), *caches)
    return out.flatten(1) @ state.w_out


def main(backend: str = "inductor", device: str = "cpu") -> int:
    """Runs compiled and eager steps at several batches and lengths; prints and returns how often it was compiled."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    differences = []
    with torch.no_grad():
        for batch, max_pages, lengths in [(2, 90, [1400, 31]), (3, 8, [1, 100, 64]), (5, 80, [1200, 1, 2, 3, 400])]:
            states = [new_state(batch, max_pages, lengths, device) for _ in "ab"]
            for _ in range(20):
                x = torch.randn(batch, WIDTH).to(device, dtype_on(device))
                differences.append((compiled(x, states[0]) - step(x, states[1])).abs().max())
    worst = float(torch.stack(differences).max())  # NaN, if there is one
    print(f"compiled {counter.frame_count} time for 60 steps of 3 batches; largest difference to eager {worst:.1e}")
    # float32 sums in another order; bfloat16 outputs near 1, rounded where a fusion does not
    if not worst <= (1e-4 if device == "cpu" else 0.05):
        raise SystemExit("the compiled step computes something else")
    return counter.frame_count


if __name__ == "__main__":
    main(device=sys.argv[1] if len(sys.argv) > 1 else "cpu")
