"""What is timed of the package itself: the whole sparse step, its parts, the dense op, a summary update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from vashista_gen.bench.cases import Case, Inputs


@dataclass
class Contestant:
    """A call to time. `run(set number, inputs)` computes; `kind` says which reference the gate holds it against.

    kind: dense (every token), candidates (what the package keeps of the pages it selected), pages (every token of
    those), selection, summaries. A peer that fails its check is left out with the reason; for the package a failure is
    an error.
    """

    name: str
    label: str
    kind: str
    run: Callable[[int, Inputs], Any]
    peer: bool = False


def of_package(package: ModuleType, case: Case) -> list[Contestant]:
    """The package's own contestants. Outputs are poisoned with NaN once, so that a value never written shows."""
    pages = [package.select_pages(x.q, x.summaries, x.block_table, x.seq_lens) for x in case.inputs]
    return [
        Contestant("dense", "dense op, paged KV", "dense", _into(package.decode_dense, case, lambda i, x: x.paged)),
        Contestant(
            "sparse",
            "sparse op, paged KV",
            "candidates",
            _into(package.decode, case, lambda i, x: (*x.paged, x.summaries)),
        ),
        Contestant(
            "select",
            "  in it: choosing pages",
            "selection",
            lambda i, x: package.select_pages(x.q, x.summaries, x.block_table, x.seq_lens),
        ),
        Contestant(
            "attend",
            "  in it: attention to given pages",
            "candidates",
            _into(
                package.decode,
                case,
                lambda i, x: (*x.paged, x.summaries),
                lambda i: {"selected_pages": pages[i]},
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


def _into(op, case, arguments, extra=lambda i: {}):
    """run() of an op that fills outputs of its own, made once for each set of inputs."""
    outputs = [
        (torch.full_like(x.q, float("nan")), torch.full(x.q.shape[:2], float("nan"), device=x.q.device))
        for x in case.inputs
    ]

    def run(i, x):
        out, lse = outputs[i]
        return op(*arguments(i, x), **extra(i), out=out, lse=lse)

    return run
