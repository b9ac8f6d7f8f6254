"""The JSON Schema of a spec, from the same settings as the loader's checks; editors complete and check with it."""

from __future__ import annotations

import json
from typing import Any

from vashista_gen.spec.model import Spec
from vashista_gen.spec.setting import REQUIRED, Setting, settings_of

_JSON_TYPES = {int: "integer", float: "number", str: "string"}


def json_schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of one spec file. The loader alone checks the rules that tie several keys together."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sparse attention decoding spec",
        **_section(Spec),
    }


def schema_text() -> str:
    """`json_schema()` as the text of specs/schema.json."""
    return json.dumps(json_schema(), indent=2) + "\n"


def _section(section: type) -> dict[str, Any]:
    settings = settings_of(section)
    schema: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "required": [
            key for key, setting in settings.items() if setting.default is REQUIRED and not setting.default_key
        ],
        "properties": {key: _property(setting) for key, setting in settings.items()},
    }
    conditions = [_condition(key, setting, settings) for key, setting in settings.items() if setting.sibling]
    if conditions:
        schema["allOf"] = conditions
    return schema


def _property(setting: Setting) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": setting.doc}
    if setting.is_section:
        return {**schema, **_section(setting.kind)}
    if setting.kind is list:
        items = {"type": "string", "enum": list(setting.choices)}
        schema |= {"type": "array", "minItems": 1, "uniqueItems": True, "items": items}
    elif setting.word:
        word = {"type": "null"} if setting.word == "null" else {"const": setting.word}
        schema["anyOf"] = [_scalar(setting), word]
    else:
        schema |= _scalar(setting)
    if setting.default is not REQUIRED:
        schema["default"] = list(setting.default) if setting.kind is list else setting.default
    return schema


def _scalar(setting: Setting) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _JSON_TYPES[setting.kind]}
    if setting.choices:
        schema["enum"] = list(setting.choices)
    if setting.pattern:
        schema["pattern"] = f"^{setting.pattern}$"
    if setting.step > 1:
        schema["multipleOf"] = setting.step
    for word, bound in (("minimum", setting.low), ("maximum", setting.high), ("exclusiveMinimum", setting.above)):
        if bound is not None:
            schema[word] = bound
    return schema


def _condition(key: str, setting: Setting, settings: dict[str, Setting]) -> dict[str, Any]:
    """If `key` is given, its sibling has a value that it has a meaning with, stated where the default is not one."""
    needed = (
        {"const": setting.only_with[1]} if setting.only_with else {"not": {"const": (setting.unless or ("", ""))[1]}}
    )
    then: dict[str, Any] = {"properties": {setting.sibling: needed}}
    if not setting.applies(settings[setting.sibling].default):
        then["required"] = [setting.sibling]
    given: dict[str, Any] = {"required": [key]}
    if setting.word == "null":
        given["properties"] = {key: {"not": {"type": "null"}}}
    return {"if": given, "then": then}
