"""`Setting`: what one key of a spec allows. The loader's checks and the JSON Schema both come from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


class _Required:
    """The default of a key that has none."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class Setting:
    """Type, default and bounds of one key.

    kind         int, float, str, list (of words) or the dataclass of a section
    doc          one sentence for the reader of the schema
    default      the value as a YAML file would state it; REQUIRED when the key must be given
    default_key  the key of the same file whose value is the default ("model.dtype")
    word         the one word allowed besides a number: "default", "all" or "null"; the Spec holds what it stands for
    choices      the values allowed (for a list: the values of its items)
    low, high    inclusive bounds; `above` is an exclusive lower one
    step         the value is a multiple of it
    pattern      a regular expression the whole text matches
    only_with    (sibling key, its value): the key may be given only then, and is None otherwise
    unless       (sibling key, its value): the key may not be given then, and is None
    bound_rule   the rule that the bounds, choices, pattern or step belong to (R7 and R8 are the general ones)
    bound_why    why these bounds, for the message
    only_rule    the rule that `only_with` or `unless` belongs to
    """

    kind: type
    doc: str
    default: Any = REQUIRED
    default_key: str = ""
    word: str = ""
    choices: tuple[Any, ...] = ()
    low: int | None = None
    high: int | None = None
    above: int | None = None
    step: int = 1
    pattern: str = ""
    only_with: tuple[str, str | int] | None = None
    unless: tuple[str, str | None] | None = None
    bound_rule: str = ""
    bound_why: str = ""
    only_rule: str = ""

    @property
    def is_section(self) -> bool:
        """Whether the key holds a mapping with keys of its own."""
        return dataclasses.is_dataclass(self.kind)

    def applies(self, sibling_value: Any) -> bool:
        """Whether the key has a meaning beside that value of the sibling which `only_with` or `unless` names."""
        if self.only_with is not None:
            return sibling_value == self.only_with[1]
        return self.unless is None or sibling_value != self.unless[1]

    @property
    def sibling(self) -> str:
        """The key of the same section that `only_with` or `unless` names; empty when none does."""
        return (self.only_with or self.unless or ("", ""))[0]

    @property
    def rule(self) -> str:
        """The rule to cite when a value of the right type is out of bounds."""
        return self.bound_rule or ("R8" if self.choices else "R7")


def setting(kind: type, doc: str, **bounds: Any) -> Any:
    """A dataclass field that carries its `Setting`."""
    return dataclasses.field(metadata={"setting": Setting(kind, doc, **bounds)})


def settings_of(section: type) -> dict[str, Setting]:
    """The settings of a spec dataclass by key, in the order of the file; fields without one (source) are left out."""
    return {f.name: f.metadata["setting"] for f in dataclasses.fields(section) if "setting" in f.metadata}
