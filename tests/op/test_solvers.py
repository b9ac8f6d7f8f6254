"""The projection solvers on listed candidates and through `decode`, against the float64 theory.

Their gap bounds how far they are.

Weights are read off by one-hot values. With F* in [F(s) - s.duality_gap, F(s)] of the theory's solution s, a kernel's
weights a must satisfy F(a) - F* <= gap; what reading them off rounds is allowed for by `_read_error`.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from strategies import EMPTY, ONE, Case, Length, examples

from vashista_gen import spec
from vashista_gen.errors import UsageError
from vashista_gen.plan import make_plan
from vashista_gen.spec.footprint import solver_bytes
from vashista_gen.theory import entropic_projection, project_onto_hull
from vashista_gen.theory.rounding import entropy

from .conftest import HAS_GPU, ROOT, on_device
from .lowered import alike_branches
from .subject import NAN, Step, Subject, empty_cache, make_step, write_tokens

Lists = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # selected_tokens, kept_heads, counts
Run = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # values -> out, gap
U = 2.0**-24
SHAPES = ("hd64_entropic", "hd48_frank_wolfe")
FAMILIES = (
    "normal", "peaked", "near_tie", "one_hot", "duplicates", "huge", "constant", "zero_query", "outliers",
)  # fmt: skip
GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")]


def solver_spec(shape: str) -> spec.Spec:
    """A shape of tests/shapes."""
    return spec.load(ROOT / "tests" / "shapes" / f"{shape}.yaml")


def of_shape(packages, shape: str, device: str = "cpu") -> Subject:
    """The shape's package on a device."""
    return on_device(packages(solver_spec(shape)), device)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((shape, device), marks=[pytest.mark.xdist_group(shape), *marks], id=f"{shape}-{device}")
        for shape in SHAPES
        for device, marks in (("cpu", []), ("cuda", GPU))
    ],
)
def solver(request, packages):
    """Each solver on each device."""
    return of_shape(packages, *request.param)


def lists_of(step: Step, seed: int, most: int) -> Lists:
    """Ascending, -1 padded, with counts that leave the padding out or not; bits of heads that do not exist are set."""
    draw = np.random.default_rng(seed)
    s = step.subject
    shape = (len(step.lengths), s.kv_heads, most + seed % 3)
    tokens, heads, counts = np.full(shape, -1), draw.integers(-(2**31), 2**31, shape), np.full(shape[:2], shape[2])
    for b, length in enumerate(step.lengths):
        for h in range(s.kv_heads):
            count = min(length, int(draw.integers(0, most + 1)))
            tokens[b, h, :count] = np.sort(draw.choice(length, count, replace=False)) if count else []
            counts[b, h] = count if seed % 2 else shape[2]
    return tuple(torch.from_numpy(x.astype(np.int32)).to(s.device) for x in (tokens, heads, counts))


def solve(step: Step, lists: Lists, values: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """solve_tokens into NaN-poisoned outputs: out, gap [batch, kv heads, group, (d)]."""
    s = step.subject
    library = importlib.import_module(f"{s.package.__name__}.library").load(s.device.type, s.device.index)
    values = step.v_cache if values is None else values
    shape = (len(step.lengths), s.kv_heads, s.group)
    out = torch.full((*shape, s.head_dim), NAN, dtype=s.dtype, device=s.device)
    gap = torch.full(shape, NAN, device=s.device)
    dims = {
        "batch": shape[0], "max_pages": step.block_table.shape[1], "num_pages": step.k_cache.shape[0],
        "k_stride": step.k_cache.stride(0), "v_stride": values.stride(0), "top_tokens": lists[0].shape[2],
    }  # fmt: skip
    tensors = (step.q.view(*shape, s.head_dim), step.k_cache, values, step.block_table, step.seq_lens, *lists, out, gap)
    library.call("solve_tokens", tensors, dims)
    return out.cpu(), gap.cpu()


def decode(step: Step, summaries, values: torch.Tensor | None = None, **more) -> tuple[torch.Tensor, torch.Tensor]:
    """`decode` into NaN-poisoned outputs: out, gap [batch, kv heads, group, (d)]."""
    s = step.subject
    out, gap = torch.full_like(step.q, NAN), torch.full(step.q.shape[:2], NAN, device=s.device)
    values = step.v_cache if values is None else values
    tensors = (step.q, step.k_cache, values, step.block_table, step.seq_lens)
    returned = s.package.decode(*tensors, summaries, out=out, gap=gap, **more)
    assert returned[0] is out and returned[1] is gap
    shape = (len(step.lengths), s.kv_heads, s.group)
    return out.view(*shape, s.head_dim).cpu(), gap.view(shape).cpu()


def lists_of_decode(step: Step, pages: torch.Tensor) -> Lists:
    """The candidates of `decode` on those pages, chosen by the reference in float64; all of short contexts."""
    s, (pages, table, lens) = step.subject, (x.cpu() for x in (pages, step.block_table, step.seq_lens))
    reference = s.package.reference

    def chosen(b: int, h: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = reference.candidate_tokens(pages, lens, b, h)
        scores = reference.token_scores(step.q.cpu().double(), step.k_cache.cpu().double(), table, None, b, h, tokens)
        nothing = torch.zeros(-(-int(lens[b]) // s.page_size), dtype=torch.bool)
        return tokens, reference.keep(scores, tokens, int(lens[b]), s.tokens_kept, nothing)

    tokens, heads = reference.listed(chosen, step.q.cpu())
    return tokens, heads, (tokens >= 0).sum(-1)


def weights_of(step: Step, lists: Lists, run: Run) -> np.ndarray:
    """The weights [batch, kv heads, group, T] of the listed candidates, float64, read off by one-hot values."""
    s = step.subject
    tokens = lists[0].cpu()
    batch, heads, count = tokens.shape
    found = np.zeros((batch, heads, s.group, count))
    for first in range(0, count, s.head_dim):
        values = empty_cache(s, step.k_cache.shape[0])
        for b, length in enumerate(step.lengths):
            rows = torch.zeros(length, heads, s.head_dim)
            for h in range(heads):
                for i in range(first, min(first + s.head_dim, count)):
                    if tokens[b, h, i] >= 0:
                        rows[tokens[b, h, i], h, i - first] = 1
            write_tokens(s, values, step.block_table[b].cpu(), 0, rows.to(s.dtype))
        out, _ = run(values.to(s.device))
        part = out.double().numpy()[..., : min(s.head_dim, count - first)]
        found[..., first : first + s.head_dim] = part
    return found


def problems(step: Step, lists: Lists):
    """(index (b, h, g), slots, keys [n, d], values [n, d], q' [d]), float64, of each query head with a candidate."""
    s = step.subject
    scale = s.spec["model"]["sm_scale"]
    tokens, heads = lists[0].cpu().numpy(), lists[1].cpu().numpy()
    for b, h, queries, keys, values in step.rows:
        for g in range(s.group):
            slots = np.flatnonzero((tokens[b, h] >= 0) & (heads[b, h] >> g & 1 == 1))
            listed = tokens[b, h][slots]
            if len(slots):
                yield (b, h, g), slots, keys[listed].numpy(), values[listed].numpy(), scale * queries[g].numpy()


def objective_of_fit(keys: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    """f(a) = 1/2 ||sum_j a_j k_j - q'||^2."""
    return 0.5 * float(((weights @ keys - target) ** 2).sum())


def objective(s, keys: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    """F(a) of entropic_projection, f(a) of frank_wolfe."""
    fit = objective_of_fit(keys, target, weights)
    if s.spec["attention"]["solver"] == "frank_wolfe":
        return fit
    with np.errstate(divide="ignore"):
        return fit - s.spec["attention"]["epsilon"] * entropy(np.log(weights))


def least(s, keys: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
    """(a lower bound on the least objective, the theory's weights and point, its bound on the point's error)."""
    if s.spec["attention"]["solver"] == "frank_wolfe":
        hard = project_onto_hull(keys, target)
        return objective(s, keys, target, hard.weights) - hard.suboptimality, hard.weights, hard.point, hard.point_error
    epsilon = s.spec["attention"]["epsilon"]
    if np.abs(keys).max() > 1e6 * np.sqrt(epsilon):
        # beyond the theory's Newton steps: the entropy is at most log n, and y is then not compared
        hard = project_onto_hull(keys, target)
        lowest = objective_of_fit(keys, target, hard.weights) - hard.suboptimality - epsilon * np.log(len(keys))
        return lowest, hard.weights, hard.point, np.inf
    found = entropic_projection(keys, target, epsilon)
    weights = found.weights / found.weights.sum()
    return objective(s, keys, target, weights) - found.duality_gap, weights, found.point, found.point_error


def _read_error(s, keys, target, weights) -> float:
    """What F differs by when each weight is read to 8 u (a rounding of out more on a GPU), and float64 evaluates it."""
    relative = 8 * U + (2 * torch.finfo(s.dtype).eps if s.device.type == "cuda" else 0.0) + 2.0**-53 * 4 * len(keys)
    longest, distance = np.linalg.norm(keys, axis=1).max(), np.linalg.norm(weights @ keys - target)
    logs = np.abs(np.log(np.maximum(weights, 1e-300)))
    moved = relative * longest
    cost = s.spec["attention"]["epsilon"] * relative * float(weights @ (1 + logs))
    return 2 * moved * (distance + moved) + cost


def check_lists(subject: Subject, case: Case, most: int = 50) -> list[float]:
    """Every property of the kernel on drawn lists; returns the gaps."""
    step = make_step(subject, case)
    lists = lists_of(step, case.seed, most)
    return check(step, lists, lambda values: solve(step, lists, values))


def check(step: Step, lists: Lists, run: Run) -> list[float]:
    """Every property of what run(values) gives on these candidates; returns the gaps."""
    subject = step.subject
    out, gap = run(step.v_cache)
    weights = weights_of(step, lists, run)
    assert not gap.isnan().any() and (gap >= 0).all() and out.isfinite().all()
    entropic = subject.spec["attention"]["solver"] == "entropic_projection"
    rounding = torch.finfo(subject.dtype).eps if subject.device.type == "cuda" else 0.0
    seen = torch.zeros(gap.shape, dtype=torch.bool)
    for index, slots, keys, values, target in problems(step, lists):
        seen[index] = True
        a, bound = weights[index][slots], float(gap[index])
        rest = np.delete(weights[index], slots)
        count, u = len(a), U if subject.device.type == "cpu" else 2.0**-22
        assert (a >= 0).all() and not rest.any()
        assert abs(a.sum() - 1) <= (2 * count + 32) * u + 2.0**-17 * bool(rounding) + rounding
        a = a / a.sum()
        lowest, solution, point, point_error = least(subject, keys, target)
        assert objective(subject, keys, target, a) - lowest <= bound + _read_error(subject, keys, target, a)
        # f is 1-strongly convex in y
        longest = np.linalg.norm(keys, axis=1).max()
        read = (8 * U + 2 * rounding) * longest
        assert np.linalg.norm(a @ keys - point) <= np.sqrt(2 * bound) * (1 + 1e-6) + point_error + read
        # the output is that of the weights, for any values
        centre = values.mean(0)
        sizes = np.abs(values).max(0) * ((2 * count + 48) * u + 2.0**-17 * bool(rounding) + 2 * rounding)
        exact = a @ values
        assert (np.abs(out[index].double().numpy() - exact) <= sizes + 2.0**-120).all()
        if entropic and np.isfinite(bound):
            # eps KL(a || a_eps) <= gap, Pinsker: ||a - a_eps||_1 <= sqrt(2 gap / eps)
            spread = np.linalg.norm(values - centre, axis=1).max()
            slack = np.sqrt(2 * (bound + _read_error(subject, keys, target, a)) / subject.spec["attention"]["epsilon"])
            theirs = np.sqrt(2 * max(0.0, objective(subject, keys, target, solution) - lowest))
            assert (
                np.linalg.norm((a - solution) @ values)
                <= (slack + theirs + 1e-12) * spread + 1e-12 * np.abs(values).max()
            )
    assert (gap[~seen] == 0).all() and (out[~seen] == 0).all()
    return gap[seen].tolist()


lengths = st.one_of(st.sampled_from([EMPTY, ONE, Length(tokens=2)]), st.builds(Length, eighths=st.integers(1, 12)))
cases = st.builds(
    Case, st.lists(lengths, min_size=1, max_size=2).map(tuple), st.integers(0, 2**16), st.sampled_from(FAMILIES)
)


@examples(6)
@given(case=cases)
@example(Case((EMPTY, ONE, Length(eighths=8)), seed=1, family="huge"))
@example(Case((Length(eighths=8),), seed=2, family="duplicates"))
@example(Case((Length(eighths=8),), seed=3, family="near_tie"))
@example(Case((Length(eighths=8),), seed=4, family="constant"))
def test_gap_bounds_the_error(solver, case):
    check_lists(solver, case)


STEPS = (
    Case((Length(eighths=20, tokens=3), Length(eighths=6, tokens=5)), seed=11),  # routed, and within the pages
    Case((Length(eighths=16), EMPTY, Length(tokens=33)), seed=12, family="peaked"),
    Case((ONE, Length(eighths=9, tokens=1)), seed=13, family="outliers"),
)


@pytest.mark.parametrize("case", STEPS, ids=lambda case: case.family)
def test_decode_solves_on_its_candidates(solver, case):
    """Routed and short contexts alike; one table is so narrow that no sequence could drop a token."""
    step = make_step(solver, case)
    summaries = step.summarize()
    pages = solver.package.select_pages(step.q, summaries, step.block_table, step.seq_lens)
    run = lambda values: decode(step, summaries, values)
    lists = lists_of_decode(step, pages)
    tensors = (step.q, step.k_cache, step.block_table, step.seq_lens)
    chosen = [x.cpu() for x in solver.package.select_tokens(*tensors, summaries)]
    count = lists[0].shape[2]
    same = zip(chosen, lists, strict=True)
    assert all(torch.equal(x[..., :count] if x.dim() == 3 else x, y.to(torch.int32)) for x, y in same)
    check(step, lists, run)
    if case.family == "normal":
        given = decode(step, None, selected_pages=pages.flip(-1).contiguous())
        assert all(torch.equal(x, y) for x, y in zip(given, run(step.v_cache), strict=True))


@pytest.mark.parametrize("shape", [pytest.param(s, marks=pytest.mark.xdist_group(s)) for s in SHAPES])
def test_context_of_a_few_tokens(packages, shape):
    """A table of one page goes through the list too: its gap is that of the projection, no lse."""
    step = make_step(of_shape(packages, shape), Case((Length(tokens=9), EMPTY, ONE), seed=0))
    assert step.block_table.shape[1] == 1
    pages = step.select_pages(step.summarize())
    gaps = check(step, lists_of_decode(step, pages), lambda values: decode(step, None, values, selected_pages=pages))
    assert len(gaps) == 2 * step.q.shape[1]


PADDED = Case((Length(eighths=8), Length(tokens=3)), seed=6)


def test_padding_changes_nothing(solver):
    step = make_step(solver, PADDED)
    *lists, counts = lists_of(step, 7, 40)
    out, gap = solve(step, (*lists, counts))
    wider = [torch.cat([x, torch.full_like(x, -1), torch.full_like(x, -1)], dim=-1).contiguous() for x in lists]
    assert all(torch.equal(x, y) for x, y in zip(solve(step, (*wider, counts)), (out, gap), strict=True))
    out_counted, gap_counted = solve(step, (*wider, torch.full_like(counts, wider[0].shape[2])))
    assert torch.equal(out, out_counted)
    # the bound counts one more rounding a tile
    assert (gap_counted >= gap).all() and torch.allclose(gap, gap_counted, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("shape", [pytest.param(s, marks=pytest.mark.xdist_group(s)) for s in SHAPES])
def test_usual_iterations_converge(packages, shape):
    """The gap is of use: after the usual number of iterations it is a small part of the objective's range."""
    case = Case((Length(eighths=8), Length(eighths=6)), seed=7, family="peaked")
    gaps = check_lists(of_shape(packages, shape), case, most=40)
    assert max(gaps) <= 0.02 and np.median(gaps) <= 5e-3, gaps


@pytest.mark.xdist_group("hd64_entropic")
def test_softmax_where_keys_are_small(packages):
    """Keys 2^-10 and q 2^10 times as large: 1/2 ||y||^2 all but vanishes, and the weights are softmax(s / epsilon).

    The entropic weights are softmax((s - <k, y>) / epsilon): off by factors within exp(2 max ||k||^2 / epsilon),
    and sqrt(2 gap / epsilon) bounds the 1-norm of what the iterations leave.
    """
    subject = of_shape(packages, "hd64_entropic")
    step = make_step(subject, Case((Length(eighths=8),), seed=8))
    step = replace(step, q=step.q * 2**10, k_cache=step.k_cache * 2**-10, keys=[k * 2**-10 for k in step.keys])
    lists = lists_of(step, 8, 40)
    _, gap = solve(step, lists)
    weights = weights_of(step, lists, lambda values: solve(step, lists, values))
    for index, slots, keys, _, target in problems(step, lists):
        logits = keys @ target / subject.spec["attention"]["epsilon"]
        softmax = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        moved = np.expm1(2 * (np.linalg.norm(keys, axis=1).max() ** 2) / subject.spec["attention"]["epsilon"])
        a = weights[index][slots]
        assert np.abs(a - softmax).sum() <= 2 * moved + np.sqrt(2 * float(gap[index])) + 100 * U
        assert np.abs(a - softmax).sum() <= 0.01


@pytest.mark.parametrize("shape", [pytest.param(s, marks=pytest.mark.xdist_group(s)) for s in SHAPES])
@pytest.mark.parametrize("iterations", [1, 3, None], ids=["one", "three", "usual"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reference_in_float64(packages, monkeypatch, shape, family, iterations):
    """The reference's own gap however early it stops; after the usual number the kernel is within both gaps of it."""
    subject = of_shape(packages, shape)
    if iterations is not None:
        solver = importlib.import_module(f"{subject.package.__name__}.reference_solve")
        monkeypatch.setattr(solver, "ITERATIONS", iterations)
    step = make_step(subject, Case((Length(eighths=5), EMPTY), seed=9, family=family))
    lists = lists_of(step, 9, 30)
    wide = lambda x: x.double()
    out, gap = subject.package.reference.solve_tokens(
        wide(step.q), wide(step.k_cache), wide(step.k_cache), step.block_table, step.seq_lens, *lists[:2]
    )
    points, theirs = solve(step, lists, step.k_cache)
    assert out.dtype == torch.float64 and not gap.isnan().any() and (gap >= 0).all() and (out[1] == 0).all()
    for index, _, keys, _, target in problems(step, lists):
        b, h, g = index
        own, bound = out[b, h * subject.group + g].numpy(), float(gap[b, h * subject.group + g])
        _, _, point, point_error = least(subject, keys, target)
        longest = np.linalg.norm(keys, axis=1).max()
        assert np.linalg.norm(own - point) <= np.sqrt(2 * bound) * (1 + 1e-6) + point_error + 1e-13 * longest
        apart = np.sqrt(2 * bound) + np.sqrt(2 * float(theirs[index])) + (2 * len(keys) + 48) * U * longest
        assert np.linalg.norm(points[index].double().numpy() - own) <= apart


@pytest.mark.parametrize("shape", [pytest.param(s, marks=pytest.mark.xdist_group(s)) for s in SHAPES])
def test_reference_decodes_alike(packages, shape):
    """With the keys as values both outputs are points y, each within sqrt(2 gap) of the best one."""
    subject = of_shape(packages, shape)
    step = make_step(subject, STEPS[0])
    summaries = step.summarize()
    pages = step.select_pages(summaries)
    points, gap = decode(step, summaries, step.k_cache)
    wide = (step.q.double(), step.k_cache.double(), step.k_cache.double(), step.block_table, step.seq_lens)
    out, their_gap = subject.package.reference.decode(*wide, None, selected_pages=pages)
    assert out.dtype == their_gap.dtype == torch.float64
    longest = max(float(keys.norm(dim=-1).max()) for keys in step.keys)
    apart = (2 * gap.double()).sqrt() + (2 * their_gap.view(gap.shape)).sqrt() + 400 * U * longest
    assert ((points.double() - out.view(points.shape)).norm(dim=-1) <= apart).all()


def test_what_wants_a_softmax_refuses(packages, tmp_path):
    """Comparisons with softmax attention and FlashInfer's interface, whose second result is an lse."""
    from vashista_gen.bench import run
    from vashista_gen.integrations.flashinfer import SparseDecodeWithPagedKVCacheWrapper
    from vashista_gen.tune import run as tune

    with pytest.raises(UsageError, match="frank_wolfe is another operator"):
        run.main(ROOT / "tests" / "shapes" / "hd48_frank_wolfe.yaml", tmp_path, Console())
    with pytest.raises(UsageError, match="entropic_projection is another operator"):
        tune.main(ROOT / "tests" / "shapes" / "hd64_entropic.yaml")
    with pytest.raises(UsageError, match="no softmax"):
        SparseDecodeWithPagedKVCacheWrapper(packages(solver_spec("hd64_entropic")))


def test_verify_holds_solvers_to_their_gaps(solver):
    """What `vashista-gen verify` runs; a GPU also from a CUDA graph."""
    from vashista_gen.bench import verify

    found = verify.verify(solver.package, solver.device, solver.dtype, lambda name: None)
    assert all({"dense", "sparse", "attend", "tokens", "update"} <= set(case["errors"]) for case in found)


@pytest.mark.parametrize("shape", [pytest.param(s, marks=pytest.mark.xdist_group(f"lower-{s}")) for s in SHAPES])
def test_lowers_to_machine_code(packages, tmp_path, shape):
    """For sm_90a, within the shared memory that R42 counts; with nvcc, to machine code."""
    loaded = solver_spec(shape)
    library, lower = (
        importlib.import_module(f"{packages(loaded).__name__}.{part}") for part in ("library", "kernels.lower")
    )
    source, tensors = lower.cuda_source("solve_tokens", "cuda-sm_90a")
    assert 'extern "C" int solve_tokens_kernel_launch(' in source and tensors[-2:] == ["out", "gap"]
    assert "double" not in source and not alike_branches(source)
    (shared,) = re.findall(r"MaxDynamicSharedMemorySize, (\d+)", source)
    model, (solver, iterations) = loaded.model, (loaded.attention.solver, loaded.attention.iterations)
    tokens = make_plan(loaded).tile_tokens_cuda
    promised = solver_bytes(solver, iterations, tokens, loaded.group_size, model.head_dim, model.dtype)
    assert int(shared) <= promised
    if library.cuda_compiler() is not None:
        (tmp_path / "solve.cu").write_text(source)
        shutil.copy(library.HERE / "kernels" / "prelude.cuh", tmp_path)
        flags = ["-std=c++20", "-w", "-gencode", "arch=compute_90a,code=sm_90a", *lower.include_flags()]
        subprocess.run([library.cuda_compiler(), *flags, "-c", "solve.cu", "-o", "solve.o"], cwd=tmp_path, check=True)
