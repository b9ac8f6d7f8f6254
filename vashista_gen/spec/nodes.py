"""YAML text -> the node tree of PyYAML, which knows the line of every key; what is not YAML becomes a problem."""

from __future__ import annotations

from typing import Any

import yaml

from vashista_gen.spec.report import Report

MAX_BYTES = 256 * 1024
_YAML_TAG = "tag:yaml.org,2002:"


def decode(data: bytes, report: Report) -> str | None:
    """Bytes -> text with "\\n" line ends and no byte-order mark; None (and R1) when not UTF-8 or too many."""
    if len(data) > MAX_BYTES:
        report.add(
            1, "R1", f"the file has {len(data)} bytes, a spec at most {MAX_BYTES}", "check that this file is a spec"
        )
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        report.add(line, "R1", f"byte 0x{data[error.start]:02x} is not UTF-8", "save the file as UTF-8 text")
        return None
    return text.replace("\r\n", "\n")


def line_of(node: yaml.Node) -> int:
    """Line of a node, from 1."""
    return node.start_mark.line + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's own composer, without anchors, aliases and tags (R2)."""

    def __init__(self, text: str, report: Report) -> None:
        super().__init__(text)
        self.report = report

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self.get_event()
            self.report.add(line, "R2", f"alias *{event.anchor}", "write the value itself in its place")
            return yaml.ScalarNode("!alias", "", event.start_mark, event.end_mark)
        if event.anchor is not None:
            self.report.add(
                line, "R2", f"anchor &{event.anchor}", "remove the anchor and write the value where it is used"
            )
            event.anchor = None
        if event.tag is not None:
            self.report.add(
                line, "R2", f"tag {event.tag.replace(_YAML_TAG, '!!')}", "remove the tag: the key decides the type"
            )
            event.tag = None
            event.implicit = (True, False) if isinstance(event, yaml.ScalarEvent) else True
        return super().compose_node(parent, index)


def is_alias(node: yaml.Node) -> bool:
    """Whether the node stands for an alias, which is already reported."""
    return node.tag == "!alias"


def compose(text: str, report: Report) -> yaml.MappingNode | None:
    """The mapping at the top of the document; None (and R1) when there is none."""
    last_line = text.count("\n") + 1
    try:
        root = _compose(text, report)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        report.add(line, "R1", f"character U+{error.character:04X} is not allowed in YAML", "remove the character")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = min(mark.line + 1, last_line) if mark else 1
        text_of = ", ".join(part for part in (error.context, error.problem) if part)
        hint = "indent with spaces, not tabs" if "\\t" in text_of else "correct the line so that it is valid YAML"
        report.add(line, "R1", f"not valid YAML: {text_of}", hint)
    except RecursionError:
        report.add(1, "R1", "nested too deeply", "a spec has sections of plain values, nothing deeper")
    except (yaml.YAMLError, ValueError, OverflowError, IndexError):
        # PyYAML's scanner lets these through for escapes such as "\UFFFFFFFF" and for absurd %YAML versions.
        report.add(
            1, "R1", "not valid YAML: an escape or a directive that cannot be read", "write plain words and numbers"
        )
    else:
        if isinstance(root, yaml.MappingNode):
            return root
        if root is None:
            report.add(1, "R1", "the file is empty", "start from a shipped spec such as specs/llama3_8b.yaml")
        elif not is_alias(root):
            held = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
            report.add(line_of(root), "R1", f"the file holds {held}, not keys with values", "start with `name: ...`")
    return None


def _compose(text: str, report: Report) -> yaml.Node | None:
    loader = _Loader(text, report)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()
