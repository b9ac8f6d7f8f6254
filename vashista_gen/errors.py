"""Every error a user may see: its exit code, and in each one the next step to take.

| class                   | exit code | raised when                                              |
| ----------------------- | --------- | -------------------------------------------------------- |
| DriftError              | 1         | generated files differ from what their spec gives        |
| SpecError               | 2         | a spec breaks one or more of the rules in specs/README.md |
| UsageError              | 2         | the command or the call itself is wrong                  |
| MissingEnvironmentError | 3         | a compiler, a device or an installed file is not there   |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One broken rule: `rule` is its number ("R12"), `line` counts from 1, `hint` is the next step."""

    file: str
    line: int
    rule: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.message}\n    next: {self.hint}"


class VashistaError(Exception):
    """What went wrong, and in `hint` the next command to type or the next step."""

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n    next: {self.hint}"


class DriftError(VashistaError):
    """Generated files are stale, orphaned or edited by hand."""

    exit_code = 1


class SpecError(VashistaError):
    """All the problems of one spec file, in the order of their lines; `str()` is one block a problem."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)), "mend the lines named; specs/README.md has the rules")
        self.args = (self.problems,)  # so that pickling rebuilds the same error

    def __str__(self) -> str:
        return self.message


class UsageError(VashistaError):
    """The command line or the call is wrong: no such file, options that exclude each other."""

    exit_code = 2


class MissingEnvironmentError(VashistaError):
    """Something the work needs is not installed: a compiler, a device, a data file of the package."""

    exit_code = 3
