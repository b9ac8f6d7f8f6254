"""`Report`: collects the problems of one file, and how values are shown in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from vashista_gen.errors import Problem, SpecError
from vashista_gen.spec.rules import RULES

_SHOWN_CHARACTERS = 40


class Report:
    """The problems found so far in `file`."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def add(self, line: int, rule: str, message: str, hint: str) -> None:
        """Record that `rule` is broken on `line`; control characters and line breaks in the texts are made harmless."""
        self.problems.append(Problem(self.file, line, RULES[rule].number, _one_line(message), _one_line(hint)))

    def raise_if_any(self) -> None:
        """Raise SpecError with every problem, by line and then by number of the rule."""
        if self.problems:
            raise SpecError(sorted(set(self.problems), key=lambda p: (p.line, int(p.rule[1:]), p.message)))


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in joined)


def show(value: str) -> str:
    """A text of the file in quotes, cut to a readable length."""
    return repr(value if len(value) <= _SHOWN_CHARACTERS else value[: _SHOWN_CHARACTERS - 3] + "...")


def listed(values: Iterable[object]) -> str:
    """Values for a message: "a, b or c"."""
    words = [str(v) for v in values]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def closest(word: str, choices: Sequence[object]) -> str | None:
    """The choice that `word` is probably a slip for, whatever its case."""
    by_folded = {str(c).casefold(): str(c) for c in choices}
    matches = difflib.get_close_matches(word[:64].casefold(), by_folded, n=1, cutoff=0.65)
    return by_folded[matches[0]] if matches else None
