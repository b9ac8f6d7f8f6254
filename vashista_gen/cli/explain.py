"""`vashista-gen explain`: what a spec becomes, in words and tables; the arithmetic is vashista_gen/plan/cost.py."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from vashista_gen.cli import words
from vashista_gen.cli.console import new_table, output, say, show
from vashista_gen.errors import UsageError
from vashista_gen.plan import Plan, cost, make_plan
from vashista_gen.spec import Hardware, attention_tile, hardware_of, load

CONTEXTS = tuple(1024 * 4**i for i in range(6))  # 1k to 1M
_FACTORS = {"": 1, "k": 1024, "m": 1024**2}
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def run(path: Path, context: str | None, batch: int) -> None:
    """Prints what the spec at `path` becomes. Raises SpecError, and UsageError for contexts that are no numbers."""
    contexts = CONTEXTS if context is None else parse_contexts(context)
    plan = make_plan(load(path))
    console = output()
    say(console, f"{plan.spec.name}  {plan.spec.source.file}", "bold")
    for text in (
        words.shape(plan),
        words.summary(plan),
        words.routing(plan),
        words.candidates(plan),
        words.certificate(plan),
        words.break_even(plan),
    ):
        _paragraph(console, text)
    _kernels(console, plan)
    _bytes(console, plan, contexts)
    _step(console, plan, contexts, batch)
    _tiles(console, plan)


def _kernels(console: Console, plan: Plan) -> None:
    _title(console, "Kernels: those of a decode step in the order they run, then the others")
    table = new_table("kernel", "runs", "reads", "gives")
    for name, kernel in words.kernels(plan):
        table.add_row(name, words.WHEN[kernel.when], kernel.reads, kernel.gives)
    show(console, table)


def _bytes(console: Console, plan: Plan, contexts: tuple[int, ...]) -> None:
    parts = {
        "summaries": not plan.scores_by_sketch,
        "sketches": plan.sketch,
        "token K": True,
        "token V": True,
        "tables": True,
    }
    parts["certificate"] = plan.certified
    numbers = ("context", "dense", "sparse", "share", *(name for name, shown in parts.items() if shown))
    _title(console, "Bytes read for one sequence and layer")
    table = new_table(*numbers, right=numbers)
    for context in contexts:
        dense, sparse = cost.dense_bytes(plan, context).total, cost.sparse_bytes(plan, context)
        read = (sparse.summaries, sparse.sketches, sparse.keys, sparse.values, sparse.tables)
        read = (*read, cost.certificate_bytes(plan, context))
        cells = (size(count) for count, shown in zip(read, parts.values(), strict=True) if shown)
        table.add_row(tokens(context), size(dense), size(sparse.total), f"{sparse.total / dense:.1%}", *cells)
    show(console, table, keep_lines=True)
    least = cost.crossover(plan)
    if least is None:
        _paragraph(
            console,
            "The sparse step reads at least as many bytes as the dense one at some length beyond every context.",
        )
    else:
        _paragraph(
            console, f"The sparse step reads fewer bytes than the dense one from a context of {least:,} tokens on."
        )
    if plan.refreshes:
        longest = max(contexts)
        read = (size(cost.sparse_bytes(plan, longest, steps).total) for steps in (1, 0))
        _paragraph(
            console,
            "Sparse is the mean of {} steps: at {} one that routes reads {}, one that keeps its pages {}.".format(
                plan.spec.routing.refresh, tokens(longest), *read
            ),
        )
    if plan.certified:
        _paragraph(console, _certificate(plan))
    if plan.projects:
        times = cost.key_passes(plan)
        _paragraph(console, f"The solver goes over token K {times} times, mostly out of the L2 cache: they count once.")
    if plan.spec.candidates.mass is not None:
        _paragraph(console, "Token K and V are at most this: a mass is often reached by fewer tokens.")
    if plan.spec.candidates.tokens is not None and plan.spec.candidates.share == "head" and plan.spec.group_size > 1:
        _paragraph(
            console,
            "V is at most this: each query head has tokens of its own, and those two heads share are read once.",
        )
    if "c" in plan.spec.targets and plan.spec.cache.kv_dtype != "float32":
        _paragraph(
            console, "On the c target keys, values and scales are float32, 4 bytes; the table is for the spec's type."
        )


def _step(console: Console, plan: Plan, contexts: tuple[int, ...], batch: int) -> None:
    cards = {hardware_of(target).name: hardware_of(target) for target in plan.spec.targets if target != "c"}
    names = [_short(card) for card in cards.values()]
    numbers = ("context", "dense", "sparse", *(f"{name} {kind}" for name in names for kind in ("dense", "sparse")))
    time = ", and the time it takes at least" if cards else ""
    _title(console, f"One step of one layer, batch {batch}: bytes read{time}")
    table = new_table(*numbers, right=numbers)
    for context in contexts:
        read = (batch * cost.dense_bytes(plan, context).total, batch * cost.sparse_bytes(plan, context).total)
        bounds = (cost.time_bound(r, card.card.bandwidth) for card in cards.values() for r in read)
        table.add_row(tokens(context), *map(size, read), *map(microseconds, bounds))
    show(console, table, keep_lines=True)
    if cards:
        bound = "A time is a lower bound, not a measurement: bytes / the card's bandwidth by its data sheet."
        _paragraph(console, f"{bound} Launches, latency and scratch come on top, some microseconds for each kernel.")
    longest = max(contexts)
    scratch = size(batch * cost.scratch_bytes(plan, longest))
    _paragraph(
        console,
        f"Scratch, the scores and logits written and read inside a sparse step, is {scratch} at {tokens(longest)}.",
    )


def _tiles(console: Console, plan: Plan) -> None:
    numbers = ("tile tokens", "score pages", "shared", "pages' shared", "of")
    _title(console, "Tiles and shared memory")
    table = new_table("target", *numbers, "example card", "GB/s", right=(*numbers, "GB/s"))
    spec = plan.spec
    for target in spec.targets:
        if target == "c":
            table.add_row(target, str(plan.tile_tokens_c), str(plan.score_pages_c), "-", "-", "-", "-", "-")
            continue
        tile = attention_tile(spec.cache.page_size, spec.model.head_dim, spec.model.dtype, target)
        hardware, shared = hardware_of(target), cost.shared_bytes(plan, target)
        chosen = f"{plan.tile_tokens_cuda}" + (
            f" (room for {tile.tokens})" if tile.tokens > plan.tile_tokens_cuda else ""
        )
        table.add_row(
            *(
                target,
                chosen,
                str(plan.score_pages_cuda),
                *(f"<= {size(count)}" for count in shared),
                size(hardware.shared_bytes_per_block),
            ),
            *(hardware.card.name, f"{hardware.card.bandwidth / 1e9:,.0f}"),
        )
    show(console, table, keep_lines=True)
    _paragraph(
        console,
        "Tile tokens: of one tile of the attention kernels; score pages: of one tile of page scores. Shared: memory "
        f"that a block of an attention kernel{' or solver' if plan.projects else ''} needs at most, and one that "
        "summarises or scores pages, of what a block can have.",
    )
    for kind in ("c", "cuda"):
        if values := spec.tuned_kernels(kind):
            named = ", ".join(f"{name} {value}" for name, value in values.items())
            _paragraph(console, f"Tuned on {spec.kernels_target(kind)}: {named}.")


def _certificate(plan: Plan) -> str:
    """When a certificate's bytes are read, and what of them on average."""
    share, average = cost.audited_share(plan), ""
    if share < 1:
        average = f" It is of a step that audits every KV head; on average over steps {share:.2%} of it."
    if plan.retries:
        return f"The certificate is computed in each step, since failures are acted on: sparse holds it.{average}"
    return f"The certificate is computed when it is asked for: sparse is without it.{average}"


def tokens(count: int) -> str:
    """A number of tokens: 4k and 1M where it is a multiple, else with commas."""
    for unit, factor in (("M", 1024**2), ("k", 1024)):
        if count and count % factor == 0:
            return f"{count // factor:,}{unit}"
    return f"{count:,}"


def size(count: int) -> str:
    """Bytes, in the largest unit they fill."""
    for unit, factor in _UNITS:
        if count >= factor:
            return f"{count / factor:,.{1 if count < 100 * factor else 0}f} {unit}"
    return f"{count} B"


def microseconds(seconds: float) -> str:
    """A time in microseconds."""
    return f"{seconds * 1e6:,.3g} us" if seconds < 1e-3 else f"{seconds * 1e6:,.0f} us"


def _short(hardware: Hardware) -> str:
    """The card's name without its memory and socket."""
    return " ".join(word for word in hardware.card.name.split() if word != "SXM" and not word.endswith("GB"))


def _title(console: Console, text: str) -> None:
    say(console)
    say(console, text, "bold")


def _paragraph(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def parse_contexts(text: str) -> tuple[int, ...]:
    """Contexts out of "8192,32k,1M"; k is 1024 and M 1024^2."""
    contexts = []
    for word in text.split(","):
        match = re.fullmatch(r"([0-9]{1,12})([km]?)", word.strip().lower())
        count = int(match[1]) * _FACTORS[match[2]] if match else 0
        if not 1 <= count <= cost.MAX_CONTEXT:
            raise UsageError(
                f"--context {text}: {word.strip() or 'nothing'!r} is not a number of tokens",
                "give --context 8192,32k,1M",
            )
        contexts.append(count)
    return tuple(contexts)
