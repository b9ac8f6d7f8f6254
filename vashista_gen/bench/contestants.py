"""What is timed of the package itself: the whole sparse step, its parts, the dense op, a summary update, and the step
as it decides for itself between the two where it takes the dense one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from vashista_gen.bench.cases import Case, Inputs


@dataclass
class Contestant:
    """A call to time. `run(set number, inputs)` computes; `kind` says which reference the gate holds it against.

    kind: dense (every token), candidates (what the package keeps of the pages it selected), solution (a projection on
    those), pages (every token of the selected ones), selection, renewal, tokens, summaries, certificate. A peer that fails its
    check is left out with the reason; for the package a failure is an error.
    """

    name: str
    label: str
    kind: str
    run: Callable[[int, Inputs], Any]
    peer: bool = False


@contextlib.contextmanager
def routed(package: ModuleType) -> Iterator[None]:
    """Within it the package routes every step that can drop a token, also one that is faster read whole."""
    with package.op.tuning.changed(dense_up_to=()):
        yield


def chosen(package: ModuleType, case: Case, whole: int) -> Contestant:
    """The step that reads whole what has up to `whole` tokens, told its context, which is no longer."""
    decode = _into(package.decode, case, lambda i, x: (*x.paged, x.summaries), lambda i: {"max_seq_len": case.context})

    own = package.op.tuning.changed(dense_up_to=((1, whole),))

    def run(i, x):
        with own:
            return decode(i, x)

    return Contestant("chosen", "sparse op, its own choice: dense", "dense", run)


def of_package(package: ModuleType, case: Case) -> list[Contestant]:
    """The package's own contestants. Outputs are poisoned with NaN once, so that a value never written shows."""
    pages = [package.select_pages(x.q, x.summaries, x.block_table, x.seq_lens) for x in case.inputs]
    projects = package.SPEC["attention"]["solver"] != "softmax"
    kind, second = ("solution", "gap") if projects else ("candidates", "lse")
    steps, routings = package.SPEC["routing"]["refresh"], []
    if steps > 1:
        routings = [package.new_routing(case.batch, x.q.device) for x in case.inputs]
    sparse = lambda step: _into(
        package.decode,
        case,
        lambda i, x: (*x.paged, x.summaries),
        lambda i: {"routing": routings[i], "step": step} if routings else {},
        second,
    )
    routes = sparse(0)
    for i, x in enumerate(case.inputs if routings else ()):
        routes(i, x)
    return [
        Contestant("dense", "dense op, paged KV", "dense", _into(package.decode_dense, case, lambda i, x: x.paged)),
        Contestant("sparse", f"sparse op, paged KV{f', the one of {steps} steps that routes' if routings else ''}", kind, routes),
        *([Contestant("kept", "  a step that keeps its pages", kind, sparse(1))] if routings else []),
        Contestant(
            "select",
            "  in it: choosing pages",
            "selection",
            lambda i, x: package.select_pages(x.q, x.summaries, x.block_table, x.seq_lens),
        ),
        Contestant(
            "attend",
            "  in it: attention to given pages",
            kind,
            _into(
                package.decode,
                case,
                lambda i, x: (*x.paged, x.summaries),
                lambda i: {"selected_pages": pages[i]},
                second,
            ),
        ),
        Contestant(
            "update",
            "summary update, one token appended",
            "summaries",
            lambda i, x: package.update_summaries(
                x.summaries, x.k_cache, x.block_table, x.old_seq_lens, x.seq_lens, v_cache=x.v_cache
            ),
        ),
    ]


def promised(package: ModuleType, case: Case) -> list[Contestant]:
    """What is verified beside what is timed: the list of tokens, the certificate, the step that is read whole."""
    spec, found = package.SPEC, []
    if hasattr(package, "select_tokens"):
        run = lambda i, x: package.select_tokens(x.q, x.k_cache, x.block_table, x.seq_lens, x.summaries)
        found.append(Contestant("tokens", "list of tokens", "tokens", run))
    if spec["certificate"]["kind"] != "none":

        def certified(i, x):
            out, lse, certificate = package.decode(*x.paged, x.summaries, return_certificate=True)
            return out, lse, *certificate

        found.append(Contestant("certificate", f"{spec['certificate']['kind']} certificate", "certificate", certified))
    if spec["routing"]["refresh"] > 1:
        found.append(renewed(package, case))
    if spec["attention"]["solver"] == "softmax":
        found.append(chosen(package, case, case.context))
    return found


def renewed(package: ModuleType, case: Case) -> Contestant:
    """Steps that keep the pages of shorter sequences: (the renewed list, the routing's pages and lengths, the step's result).

    Of three rows one is a token longer than it was, one a page and a token, and one shorter, whose list is not kept.
    """
    size, routings = package.SPEC["cache"]["page_size"], []
    for x in case.inputs:
        row = torch.arange(case.batch, dtype=torch.int32, device=x.q.device) % 3
        before = (x.seq_lens - (row * size + 1).where(row < 2, -1)).clamp(min=0)
        chosen = package.select_pages(x.q, x.summaries, x.block_table, torch.minimum(before, x.seq_lens))
        routings.append(package.Routing(chosen, before, True))

    def run(i, x):
        routing = routings[i]
        pages = package.renew_pages(routing, x.block_table, x.seq_lens)
        return pages, routing.pages, routing.seq_lens, *package.decode(*x.paged, x.summaries, routing=routing, step=1)

    return Contestant("renewed", "pages kept as sequences grow", "renewal", run)


def _into(op, case, arguments, extra=lambda i: {}, second="lse"):
    """run() of an op that fills outputs of its own, made once for each set of inputs."""
    outputs = [
        (torch.full_like(x.q, float("nan")), torch.full(x.q.shape[:2], float("nan"), device=x.q.device))
        for x in case.inputs
    ]

    def run(i, x):
        out, lse = outputs[i]
        return op(*arguments(i, x), **extra(i), out=out, **{second: lse})

    return run
