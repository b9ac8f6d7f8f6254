"""What a call of decode chose on its way: pages, token lists and certificates of every round, seen inside the op."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .subject import Step

FIELDS = ("support_gap", "support_gap_scored", "log_omitted", "leakage", "error_bound", "certified")


@dataclass
class Round:
    """One choice of tokens: all rows in round 0, then the rows whose certificate failed.

    growth: how many times the usual budget. pages, tokens, heads, counts: the lists. todo: rows of this round, bool
    [batch, kv heads]. certificate [6, batch, heads], out and lse as they were after it; failed: rows still to do.
    """

    growth: int
    pages: torch.Tensor
    tokens: torch.Tensor
    heads: torch.Tensor
    counts: torch.Tensor
    todo: torch.Tensor
    failed: torch.Tensor
    certificate: torch.Tensor | None = None
    out: torch.Tensor | None = None
    lse: torch.Tensor | None = None

    def kept(self, b: int, h: int, group: int, length: int) -> torch.Tensor:
        """bool [group, length]: which tokens each query head of a row keeps."""
        mask = torch.zeros(group, length, dtype=torch.bool)
        count = int(self.counts[b, h])
        bits = self.heads[b, h, :count, None] >> torch.arange(group) & 1
        mask[:, self.tokens[b, h, :count].long()] = bits.T.bool()
        return mask


@dataclass
class Watched:
    """Results of one call (certificate: six tensors or None), and its rounds; no round: every token was attended to."""

    out: torch.Tensor
    lse: torch.Tensor
    certificate: tuple[torch.Tensor, ...] | None
    rounds: list[Round]

    def last(self, b: int, h: int) -> Round | None:
        """The round that decided a row; None when every token was attended to."""
        mine = [r for r in self.rounds if r.todo[b, h]]
        return None if not mine or mine[-1].failed[b, h] else mine[-1]


@contextmanager
def _watching(op: Any, rounds: list[Round]):
    choose, certify = op._choose, getattr(op, "_certify", None)
    host = lambda x: x.detach().cpu().clone()

    def watched_choose(*arguments):
        selected, growth, todo = arguments[7], arguments[10], arguments[12] if len(arguments) > 12 else None
        rows = torch.ones(selected.shape[:2], dtype=torch.bool) if todo is None else host(todo) != 0
        listed, seen = choose(*arguments)
        rounds.append(Round(growth, *map(host, (selected, *listed)), rows, torch.zeros_like(rows)))
        return listed, seen

    def watched_certify(*arguments):
        certify(*arguments)
        out, lse, certificate = arguments[11:14]
        now = rounds[-1]
        now.out, now.lse, now.certificate = host(out), host(lse), host(certificate)
        if len(arguments) > 15:
            now.failed = host(arguments[15]) != 0

    op._choose = watched_choose
    if certify:
        op._certify = watched_certify
    try:
        yield
    finally:
        op._choose = choose
        if certify:
            op._certify = certify


def watched_decode(step: Step, summaries: Any, **changed: Any) -> Watched:
    """`decode` with its certificate, of a package that lists tokens."""
    rounds: list[Round] = []
    with _watching(step.subject.part("op"), rounds):
        out, lse, *certificate = step.certify(summaries, **changed)
    return Watched(out.cpu(), lse.cpu(), tuple(x.cpu() for x in certificate) or None, rounds)
