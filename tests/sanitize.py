"""compute-sanitizer over one configuration of each kernel, on a machine with a GPU, nvcc and TileLang.

    PYTHONPATH=tests:. python tests/sanitize.py                        # memcheck and racecheck, all that is chosen
    PYTHONPATH=tests:. python tests/sanitize.py --tool racecheck hd64_entropic hd48_frank_wolfe
    PYTHONPATH=tests:. python tests/sanitize.py --list                 # what is chosen, and why; needs no GPU

Packages of tests/shapes and specs are rendered into a scratch folder and compiled; then a process for each package and
tool calls every function of it. Of all specs those are taken that are needed for each kernel in each of its forms.
Every tensor has an allocation of its own, so that memcheck sees a read behind it. Exit code 1 for an error found.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck")
SMALL = 600_000  # query heads * head_dim * routed tokens: what a specimen may have, for the sake of time
LIMIT = 900  # seconds of one process


def forms(loaded) -> set[tuple]:
    """(kernel, what its text depends on) of each kernel of a spec on a GPU."""
    from vashista_gen.plan import make_plan

    plan = make_plan(loaded)
    routing, candidates = loaded.routing, loaded.candidates
    summary = (routing.summary, routing.summary_bits)
    budget = "mass" if candidates.mass is not None else "pages" if candidates.pages is not None else "tokens"
    depends = {
        "summarize": (*summary, routing.levels, loaded.sketch.transform, plan.certified),
        "score_pages": (*summary, routing.levels), "select_pages": (routing.levels,),
        "prepare_queries": (loaded.sketch.transform,),
        "score_tokens": (loaded.sketch.transform, plan.prepares_in_place), "choose_tokens": (budget, candidates.share),
        "solve_tokens": (loaded.attention.solver,),
    }  # fmt: skip
    on_cpu = {"order_pages"} if plan.orders_given_itself else set()
    kernels = (kernel for kernel in plan.kernels if kernel not in on_cpu)
    return {(kernel, plan.warps_on_cuda, plan.retries, *depends.get(kernel, ())) for kernel in kernels}


def specs() -> dict[str, Path]:
    """Every spec with a CUDA target that is small enough, the tests' own shapes first."""
    from vashista_gen import spec

    found = {}
    for path in [*sorted((ROOT / "tests" / "shapes").glob("*.yaml")), *sorted((ROOT / "specs").glob("*.yaml"))]:
        loaded = spec.load(path)
        size = loaded.model.num_q_heads * loaded.model.head_dim * loaded.routing.pages * loaded.cache.page_size
        if size <= SMALL and any(target.startswith("cuda") for target in loaded.targets):
            found[loaded.name] = path
    return found


def chosen(all_specs: dict[str, Path]) -> dict[str, set[tuple]]:
    """{spec: the forms it is taken for}: always the one with the most forms that are not yet there."""
    from vashista_gen import spec

    left = {name: forms(spec.load(path)) for name, path in all_specs.items()}
    taken: dict[str, set[tuple]] = {}
    while left:
        name = max(left, key=lambda one: len(left[one]))
        new = left.pop(name)
        if not new:
            break
        taken[name] = new
        left = {other: those - new for other, those in left.items()}
    return taken


def exercise(package, device) -> dict[str, int]:
    """Calls every function of a package; {kernel: launches}."""
    import torch
    from op.subject import Subject, make_step
    from strategies import EMPTY, LONG, ONE, Case, Length

    on_gpu = device.type == "cuda"
    dtype = getattr(torch, package.SPEC["model"]["dtype"]) if on_gpu else torch.float32
    subject = Subject(package, device, dtype)
    library = importlib.import_module(f"{package.__name__}.library").load(device.type, device.index)
    launches: dict[str, int] = {}
    call = library.call

    def counted(kernel, tensors, dims):
        launches[kernel] = launches.get(kernel, 0) + 1
        call(kernel, tensors, dims)
        if on_gpu:
            torch.cuda.synchronize(device)

    library.call = counted
    # one split and several, many and few blocks; at last two levels of routing for many rows, and in kernels of their own
    several = {"split_tokens": 16, "max_splits": 4}
    one = {"max_splits": 1, "blocks_per_sm": 1, "dense_blocks_per_sm": 1}
    cases = (
        ((LONG, ONE, EMPTY), {}),
        ((Length(eighths=9, tokens=5),), several),
        ((Length(eighths=4),) * 2, one),
        *(((LONG, ONE), {}, router) for router in (("route_rows", 1), None) if library.has("route_rows")),
    )
    try:
        for seed, (lengths, changed, *router) in enumerate(cases):
            routed = mock.patch.object(package.op, "_router", lambda *_, way=router: way[0]) if router else contextlib.nullcontext()
            with package.op.tuning.changed(**changed), routed:
                call_all(package, make_step(subject, Case(lengths, seed)))
    finally:
        del library.call
    return launches


def compiled(package, device) -> set[str]:
    """The kernels of a package's library for a device: not all are there everywhere."""
    library = package.op.library.load(device.type, device.index)
    return {kernel for kernel in package.op.library.KERNELS if library.has(kernel)}


def call_all(package, step) -> None:
    """Every function of a package on one step."""
    import torch

    projects, options = package.SPEC["attention"]["solver"] != "softmax", set(package.decode.__kwdefaults__)
    tensors = (step.q, step.k_cache, step.v_cache, step.block_table, step.seq_lens)
    where, batch = tensors[3:], len(step.lengths)
    summaries, half = step.summarize(), step.seq_lens // 2
    package.update_summaries(summaries, step.k_cache, step.block_table, half, step.seq_lens, v_cache=step.v_cache)
    pins = torch.zeros(batch, 2, dtype=torch.int32, device=step.q.device)
    selected = package.select_pages(step.q, summaries, *where, pinned_pages=pins)
    package.score_pages(step.q, summaries, *where)
    if hasattr(package, "select_tokens"):
        package.select_tokens(step.q, step.k_cache, *where, summaries)
    package.decode(*tensors, summaries)
    package.decode(*tensors, summaries, selected_pages=selected.flip(-1).contiguous())
    if package.SPEC["routing"]["refresh"] > 1:
        routing = package.new_routing(len(step.lengths), step.q.device)
        package.decode(*tensors, summaries, routing=routing, step=0)
        routing.seq_lens.sub_(package.SPEC["cache"]["page_size"] + 1)  # as if a page had begun since; short rows hold nothing
        package.decode(*tensors, summaries, routing=routing, step=1, pinned_pages=pins)
    if "budgets" in options:
        few = torch.full((batch, step.subject.kv_heads), 7, dtype=torch.int32, device=step.q.device)
        package.decode(*tensors, summaries, budgets=few, pinned_pages=pins)
    if "return_certificate" in options:
        package.decode(*tensors, summaries, return_certificate=True)
    if not projects:
        with package.op.tuning.changed(dense_up_to=((1, 2**31 - 1),)):
            package.decode(*tensors, summaries)
    out, lse = package.decode_dense(*tensors)
    package.merge_states(torch.stack([out, out]), torch.stack([lse, lse]))


def child(name: str, folder: str, device: str) -> None:
    """In the watched process: launches and, at the end, a line that says which."""
    import torch

    sys.path.insert(0, folder)
    package = importlib.import_module(name)
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    launches = exercise(package, where)
    missing = compiled(package, where) - set(launches)
    if missing:
        raise SystemExit(f"never launched: {', '.join(sorted(missing))}")
    print("LAUNCHED", sum(launches.values()))


def render(path: Path, folder: Path) -> None:
    """Writes a spec's package into the folder, without what was tuned."""
    from vashista_gen import emit, spec
    from vashista_gen.plan import make_plan

    loaded = spec.load(path).always_routed()
    for part, text in emit.render(make_plan(loaded)).items():
        target = folder / loaded.name / part
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def build(name: str, folder: Path) -> str:
    """Compiles a package for the GPU that is here unless its library is kept; the problem, or an empty string."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from {name} import library; library.load('cuda', 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr[-2000:]


def sanitizer() -> str | None:
    """Path of compute-sanitizer."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    folders = [f"{home}/{part}" for home in homes if home for part in ("bin", "compute-sanitizer")]
    folders += [str(Path(nvcc).resolve().parent)] if nvcc else []
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def command(binary: str, tool: str, name: str, folder: Path, more: list[str]) -> list[str]:
    """The watched process. Racecheck reports hazards as errors; neither tool stops at the first one."""
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *more]
    if tool == "racecheck":
        options += ["--racecheck-report", "all"]
    return [binary, *options, sys.executable, __file__, "--child", name, str(folder)]


def watch(binary: str, tool: str, name: str, folder: Path, more: list[str]) -> tuple[bool, str]:
    """(whether nothing was found, the lines that say what was)."""
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command(binary, tool, name, folder, more), env=environment, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return False, f"not done after {LIMIT} s"
    return verdict(done.returncode, done.stdout, done.stderr)


def verdict(code: int, printed: str, errors: str) -> tuple[bool, str]:
    """Clean: exit code 0, every launch made, and the tool's own count of errors is there and 0."""
    counts = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)", printed + errors)
    launched = "LAUNCHED" in printed
    if code == 0 and launched and counts and not any(map(int, counts)):
        return True, ""
    lines = [line for line in printed.splitlines() if line.startswith("=====")] or errors.splitlines()[-12:]
    return False, "\n".join(lines[:25]) or f"exit code {code}, {counts or 'no count of errors'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="specs, instead of those that are chosen")
    parser.add_argument("--tool", choices=TOOLS, action="append", help="one tool; both without")
    parser.add_argument("--jobs", type=int, default=4, help="processes on the GPU at a time")
    parser.add_argument("--option", action="append", default=[], help="one more word for compute-sanitizer; repeat")
    parser.add_argument("--list", action="store_true", help="say what is chosen, and end")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child, given.device)
        return 0
    everything = specs()
    unknown = [name for name in given.names if name not in everything]
    if unknown:
        parser.error(f"no small spec with a CUDA target: {', '.join(unknown)}; there are {', '.join(everything)}")
    taken = {name: set() for name in given.names} or chosen(everything)
    if given.list:
        for name, new in taken.items():
            print(f"{name}: {', '.join(sorted({one[0] for one in new})) or 'asked for'}")
        return 0
    binary = sanitizer()
    if binary is None:
        step = "put the CUDA toolkit's bin on PATH, or set CUDA_HOME"
        print(f"error: no compute-sanitizer\nnext: {step}", file=sys.stderr)
        return 3
    failed = 0
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder, begun = Path(scratch), time.monotonic()
        for name in taken:
            render(everything[name], folder)
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 4) // 2)))
        problems = dict(zip(taken, pool.map(lambda name: build(name, folder), taken), strict=True))
        print(f"built {len(taken)} packages in {time.monotonic() - begun:.0f} s", flush=True)
        runs = []
        workers = stack.enter_context(concurrent.futures.ThreadPoolExecutor(given.jobs))
        for name in taken:
            if problems[name]:
                failed += 1
                print(f"FAILED {name:<26} does not build: {problems[name]}", flush=True)
                continue
            for tool in given.tool or TOOLS:
                runs.append((tool, name, workers.submit(watch, binary, tool, name, folder, given.option)))
        for tool, name, run in runs:
            clean, lines = run.result()
            failed += not clean
            print(f"{'clean ' if clean else 'FAILED'} {tool:<10} {name}", flush=True)
            if lines:
                print(lines, flush=True)
        print(f"{len(runs) - failed} of {len(runs)} clean in {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
