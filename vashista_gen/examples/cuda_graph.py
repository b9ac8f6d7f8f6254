"""The decode step captured in a CUDA graph once and replayed while the sequences grow.

python -m vashista_gen.examples.cuda_graph
"""

import torch

from vashista_gen.examples.compile_step import PAGE, WIDTH, dtype_on, new_state, step

STEPS = 50
MAX_PAGES = 160
LENGTHS = [2500, 31, 1010]  # the first routes: it has more pages than the package keeps


def main() -> float | None:
    """The largest difference between replays and eager steps; None, and a line that says so, without a CUDA device."""
    assert max(LENGTHS) + STEPS <= MAX_PAGES * PAGE, "a sequence grows beyond its block table"
    if not torch.cuda.is_available():
        print("skipped: no CUDA device here (torch.cuda.is_available() is False)")
        return None
    captured, eager = (new_state(3, MAX_PAGES, LENGTHS, "cuda") for _ in "ab")
    warm = new_state(3, MAX_PAGES, [1, 1, 1], "cuda")  # the first call loads the kernels, which a capture cannot
    x = torch.zeros(3, WIDTH, device="cuda", dtype=dtype_on("cuda"))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        step(x, warm)
    torch.cuda.current_stream().wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = step(x, captured)  # recorded, not run: the lengths are still those of the start

    differences = []
    with torch.no_grad():
        for _ in range(STEPS):  # each replay appends a token: lengths, pages and splits change, the graph does not
            x.copy_(torch.randn(3, WIDTH))
            graph.replay()
            differences.append((out - step(x, eager)).abs().max())
    worst = float(torch.stack(differences).max())  # NaN, if there is one
    print(f"{STEPS} replays, lengths now {captured.seq_lens.tolist()}; largest difference to eager {worst:.1e}")
    return worst


if __name__ == "__main__":
    main()
