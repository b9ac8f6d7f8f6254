"""Node tree -> checked values by key ("routing.pages"), for every rule that concerns one key alone."""

from __future__ import annotations

import re
import sys
from typing import Any

import yaml

from vashista_gen.spec.model import Spec
from vashista_gen.spec.nodes import is_alias, line_of
from vashista_gen.spec.report import Report, closest, listed, show
from vashista_gen.spec.setting import REQUIRED, Setting, settings_of

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_MAX_DIGITS = 18
FLOAT32_TINY, FLOAT32_MAX = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127

_TYPE_HINTS = {
    int: "write decimal digits, without quotes or a decimal point",
    float: "write a number such as 0.125, without quotes",
    str: "write one word, in quotes if YAML reads it as something else",
    list: "write a list such as [cuda-sm_90a, c]",
}
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a word", list: "a list"}
_TAG_NAMES = {
    "null": "nothing (null)",
    "bool": "a boolean",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
}


_ITEM = "an item of the list"


class Values:
    """Valid values and the lines of the keys given. A key that is given but wrong has a line and no value."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self._by_key: dict[str, Any] = {}

    def __setitem__(self, key: str, value: Any) -> None:
        self._by_key[key] = value

    def __getitem__(self, key: str) -> Any:
        return self._by_key[key]

    def get(self, key: str, otherwise: Any) -> Any:
        """The value of `key`, or `otherwise` when it has none."""
        return self._by_key.get(key, otherwise)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key


def read_mapping(node: yaml.MappingNode | None, section: type, prefix: str, values: Values, report: Report) -> None:
    """Read the keys of one section into `values`; `node` is None when the section is not in the file."""
    allowed = settings_of(section)
    first_line: dict[str, int] = {}
    for key_node, value_node in node.value if node else ():
        line = line_of(key_node)
        if not isinstance(key_node, yaml.ScalarNode) or is_alias(key_node):
            if not is_alias(key_node):
                report.add(
                    line, "R3", f"{_held(key_node)} stands where a key should", "write a key, a colon and its value"
                )
            continue
        key = key_node.value
        if key in first_line:
            report.add(
                line,
                "R4",
                f"{_where(prefix)}{show(key)} is already given on line {first_line[key]}",
                "keep one of the two lines",
            )
            continue
        first_line[key] = line
        if key not in allowed:
            report.add(
                line, "R3", f"unknown key {show(key)}{_inside(prefix)}", _unknown_key_hint(key, prefix, tuple(allowed))
            )
            continue
        values.lines[prefix + key] = line
        _read_value(value_node, allowed[key], prefix + key, values, report)
    for key, setting in allowed.items():
        if key in first_line:
            continue
        if setting.is_section:
            read_mapping(None, setting.kind, f"{prefix}{key}.", values, report)
        elif setting.default is REQUIRED and not setting.default_key:
            line = line_of(node) if node else 1
            report.add(line, "R5", f"{prefix}{key} is missing", f"add `{key}`{_inside(prefix)}: {setting.doc}")


def _read_value(node: yaml.Node, setting: Setting, key: str, values: Values, report: Report) -> None:
    if is_alias(node):
        return
    if setting.is_section:
        if isinstance(node, yaml.MappingNode):
            read_mapping(node, setting.kind, f"{key}.", values, report)
        else:
            report.add(
                line_of(node), "R6", f"{key} must hold keys, not {_held(node)}", f"write `{key}: {{key: value, ...}}`"
            )
    elif setting.kind is list:
        _read_list(node, setting, key, values, report)
    else:
        value = _read_scalar(node, setting, key, report)
        if value is not _WRONG:
            values[key] = value


def _read_list(node: yaml.Node, setting: Setting, key: str, values: Values, report: Report) -> None:
    """A list of words; the line of each is kept as "targets[cuda-sm_80]"."""
    if not isinstance(node, yaml.SequenceNode):
        report.add(line_of(node), "R6", f"{key} must be a list, not {_held(node)}", _TYPE_HINTS[list])
        return
    if not node.value:
        report.add(
            line_of(node), setting.bound_rule, f"{key} is empty", f"name at least one of {listed(setting.choices)}"
        )
        return
    item_setting = Setting(str, setting.doc, choices=setting.choices)
    items: list[str] = []
    for item_node in node.value:
        item = _WRONG if is_alias(item_node) else _read_scalar(item_node, item_setting, _ITEM, report)
        if item in items:
            report.add(line_of(item_node), setting.bound_rule, f"{key} names {item} twice", "remove one of the two")
        elif item is not _WRONG:
            items.append(item)
            values.lines[f"{key}[{item}]"] = line_of(item_node)
    if items:
        values[key] = tuple(items)


_WRONG: Any = object()


def _read_scalar(node: yaml.Node, setting: Setting, key: str, report: Report) -> Any:
    """The value, None for the setting's word, or _WRONG after a problem has been recorded."""
    line = line_of(node)
    if not isinstance(node, yaml.ScalarNode):
        report.add(line, "R6", f"{key} must be {_expected(setting)}, not {_held(node)}", _type_hint(setting))
        return _WRONG
    tag = node.tag.rpartition(":")[2]
    if setting.word and (tag == "null" if setting.word == "null" else node.value == setting.word):
        return None
    text = node.value
    value: Any = _WRONG
    if setting.kind is str and tag == "str":
        value = text
    elif node.style is None and setting.kind is not str and tag != "null":
        if setting.kind is float and not _is_float32(text):
            report.add(
                line,
                "R7",
                f"{key} is {_cut(text)}, must be finite in float32, and 0 or a normal number",
                _bounds_hint(setting, key),
            )
            return _WRONG
        if setting.kind is int and _INT.fullmatch(text):
            value = int(text[:_MAX_DIGITS])  # longer ones are out of any bounds with their first digits already
        elif setting.kind is float and _FLOAT.fullmatch(text):
            value = float(text)
    if value is _WRONG:
        report.add(line, "R6", f"{key} must be {_expected(setting)}, not {_held(node)}", _type_hint(setting))
    elif not _within(value, setting):
        match = closest(value, setting.choices) if setting.kind is str else None
        hint = f"did you mean {match}?" if match else _bounds_hint(setting, key, text)
        shown = show(text) if setting.kind is str else _cut(text)
        report.add(line, setting.rule, f"{key} is {shown}, {_must_be(setting)}", hint)
        value = _WRONG
    return value


def _is_float32(text: str) -> bool:
    """False for infinities, NaN and numerals that are not 0 or a normal float32; other text is left to R6."""
    if text.lstrip("+-").lower() in (".inf", ".nan"):
        return False
    if not _FLOAT.fullmatch(text):
        return True
    value = abs(float(text))
    digits = re.split("[eE]", text)[0].strip("+-0.")
    return FLOAT32_TINY <= value <= FLOAT32_MAX or (value == 0.0 and not digits)


def _within(value: Any, setting: Setting) -> bool:
    if setting.choices:
        return value in setting.choices
    if setting.kind is str:
        return re.fullmatch(setting.pattern, value) is not None
    above = -sys.float_info.max if setting.above is None else setting.above
    low = value if setting.low is None else setting.low
    high = value if setting.high is None else setting.high
    return above < value and low <= value <= high and (setting.kind is float or value % setting.step == 0)


def _bounds(setting: Setting) -> str:
    """What a value may be: "a multiple of 16 from 16 to 512 or `default`"."""
    word = (f"`{setting.word}`",) if setting.word else ()
    if setting.choices:
        return listed((*setting.choices, *word))
    if setting.kind is str:
        is_file = setting.pattern.endswith("json")
        bounds = "a file name that ends in .json" if is_file else "a lower-case Python identifier"
    else:
        step = f"a multiple of {setting.step} " if setting.step > 1 else ""
        if setting.above is not None and setting.high is not None:
            bounds = f"greater than {setting.above} and at most {setting.high}"
        elif setting.high is not None:
            bounds = f"{step}from {setting.low} to {setting.high}"
        else:
            bounds = f"greater than {setting.above}" if setting.above is not None else f"at least {setting.low}"
    return " or ".join((bounds, *word))


def _must_be(setting: Setting) -> str:
    return f"must be {_bounds(setting)}" + (f" ({setting.bound_why})" if setting.bound_why else "")


def _bounds_hint(setting: Setting, key: str, text: str = "") -> str:
    if setting.pattern.endswith("json"):
        return f"set {key} to a file name such as calibration.json"
    if setting.pattern:
        slug = re.sub("[^a-z0-9]+", "_", text[:64].lower()).strip("_")
        return f"rename it, for example to {slug if re.fullmatch(setting.pattern, slug) else 'my_model'}"
    if key == _ITEM:
        return "remove it, or replace it by one of these"
    bounds = _bounds(setting)
    if setting.choices or setting.step > 1:
        return f"set {key} to {bounds}"
    return f"set {key} to a value {'of ' if bounds.startswith('at') else ''}{bounds}"


def _type_hint(setting: Setting) -> str:
    return _TYPE_HINTS[setting.kind] + (f", or `{setting.word}`" if setting.word else "")


def _cut(numeral: str) -> str:
    """A numeral without quotes, cut to a readable length."""
    return show(numeral)[1:-1]


def _expected(setting: Setting) -> str:
    return _TYPE_NAMES[setting.kind] + (f" or `{setting.word}`" if setting.word else "")


def _held(node: yaml.Node) -> str:
    """What a node holds, for "must be a list, not ..."."""
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "keys with values"
    tag = node.tag.rpartition(":")[2]
    if tag == "null":
        return _TAG_NAMES[tag]
    if tag == "int" and not _INT.fullmatch(node.value):
        return f"{show(node.value)}, which YAML does not read as decimal"
    return f"{_TAG_NAMES.get(tag, 'a ' + tag)} {show(node.value)}"


def _inside(prefix: str) -> str:
    return f" under {prefix[:-1]}" if prefix else ""


def _where(prefix: str) -> str:
    return f"in {prefix[:-1]}, " if prefix else ""


def _unknown_key_hint(key: str, prefix: str, allowed: tuple[str, ...]) -> str:
    if longer := [name for name in allowed if key in name.split("_")]:
        return f"did you mean {listed(longer)}?"
    for section, setting in settings_of(Spec).items():
        if setting.is_section and prefix != f"{section}." and key in settings_of(setting.kind) and key not in allowed:
            return f"move {key} under {section}"
    if match := closest(key, allowed):
        return f"did you mean {match}?"
    return f"remove it; the keys here are {', '.join(allowed)}"
