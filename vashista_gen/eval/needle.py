"""Needles in a haystack: does a fact, told once far back, still come out when asked for?

One haystack holds a needle at each depth, so that one prefix of the plain model serves them all; a question is a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

DEPTHS = (0.05, 0.25, 0.5, 0.75, 0.95)
NAMES = ("lighthouse", "orchard", "harbour", "library", "windmill")
CODES = ("4821", "9057", "3186", "7509", "2643")
TOLD = "\n\nThe secret code of the {name} is {code}. Remember it: the secret code of the {name} is {code}.\n\n"
ROOM = 128  # tokens left for a question and its answer
ASKED = "\n\nThe secret code of the {name} is"


@dataclass(frozen=True)
class Haystack:
    """ids [length] with a needle at each of DEPTHS; of each needle the question's and the answer's token ids."""

    length: int
    ids: list[int]
    questions: list[list[int]]
    answers: list[list[int]]

    @property
    def room(self) -> int:
        """Tokens of the longest question and its answer."""
        return max(len(q) + len(a) for q, a in zip(self.questions, self.answers, strict=True))


def haystack(tokenize: Callable[[str], list[int]], text: Sequence[int], length: int, bos: int | None) -> Haystack:
    """A haystack of exactly `length` tokens out of a text's token ids, which begin with `bos` if there is one."""

    def words(string: str) -> list[int]:
        ids = tokenize(string)
        return ids if bos is None else ids[1:]

    needles = [words(TOLD.format(name=n, code=c)) for n, c in zip(NAMES, CODES, strict=True)]
    straw = list(text[: length - sum(map(len, needles))])
    ids, begun = [], 0
    for depth, needle in zip(DEPTHS, needles, strict=True):
        place = max(1, int(depth * len(straw)))
        ids += straw[begun:place] + needle
        begun = place
    return Haystack(
        length, ids + straw[begun:], [words(ASKED.format(name=n)) for n in NAMES], [words(f" {c}") for c in CODES]
    )


def least_length(tokenize: Callable[[str], list[int]]) -> int:
    """Tokens below which the needles leave no room for straw."""
    return 4 * sum(len(tokenize(TOLD.format(name=n, code=c))) for n, c in zip(NAMES, CODES, strict=True))


def ask(step: Callable[[torch.Tensor], torch.Tensor], hay: Haystack, count: int) -> dict[str, torch.Tensor]:
    """nll (mean of the answer's tokens, nats, float64) and found (every one the most likely), [count, depths].

    step: token ids [count * depths] -> logits [count * depths, vocabulary]; rows of one contestant follow each other.
    """
    rows = [q + a for q, a in zip(hay.questions, hay.answers, strict=True)]
    nll, found = torch.zeros(count, len(rows), dtype=torch.float64), torch.ones(count, len(rows), dtype=torch.bool)
    for i in range(hay.room - 1):
        tokens = torch.tensor([row[i] if i < len(row) else row[-1] for row in rows] * count)
        logits = step(tokens).view(count, len(rows), -1)
        for place, (question, row) in enumerate(zip(hay.questions, rows, strict=True)):
            if len(question) <= i + 1 < len(row):
                chances = torch.log_softmax(logits[:, place].double(), dim=-1)
                nll[:, place] -= chances[:, row[i + 1]] / (len(row) - len(question))
                found[:, place] &= chances.argmax(-1) == row[i + 1]
    return {"nll": nll, "found": found}
