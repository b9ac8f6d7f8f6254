"""specs/README.md, the table of rules and the loader say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vashista_gen import spec
from vashista_gen.errors import SpecError
from vashista_gen.spec.model import Spec
from vashista_gen.spec.setting import settings_of
from vashista_gen.spec.tuning import path_of

README = (Path(__file__).resolve().parents[2] / "specs" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(
    r"^\*\*(R\d+)\*\* ([^\n]+)\n\n```yaml\n(.+?)```\n\n```yaml wrong\n(.+?)```$", README, re.MULTILINE | re.DOTALL
)
BASE = {
    "name": "name: llama3_8b\n",
    "model": "model: {num_q_heads: 32, num_kv_heads: 8, head_dim: 128}\n",
    "cache": "cache: {page_size: 16}\n",
    "routing": "routing: {pages: 64}\n",
}


def complete(example: str) -> str:
    """The example with the sections that it leaves out."""
    given = set(re.findall(r"^(\w+):", example, re.MULTILINE))
    return "".join(text for section, text in BASE.items() if section not in given) + example


def load_example(number: str, example: str, folder: Path) -> None:
    """Loads a spec with the example's sections; R46's example is the tuning file of one."""
    if number == "R46":
        path_of(folder, "llama3_8b").parent.mkdir(exist_ok=True)
        path_of(folder, "llama3_8b").write_text(example, encoding="utf-8")
    spec.loads(complete("" if number == "R46" else example), "llama3_8b.yaml", folder)


def test_sentences_agree_with_the_table() -> None:
    assert [(number, sentence) for number, sentence, _, _ in BLOCKS] == [
        (rule.number, rule.sentence) for rule in spec.RULES.values()
    ]


def test_rules_stand_under_their_groups() -> None:
    group_of = {}
    for line in README.splitlines():
        if line.startswith("### "):
            group = line[4:]
        elif match := re.match(r"\*\*(R\d+)\*\*", line):
            group_of[match[1]] = group
    assert group_of == {number: rule.group for number, rule in spec.RULES.items()}


@pytest.mark.parametrize(("number", "right", "wrong"), [(n, r, w) for n, _, r, w in BLOCKS], ids=[b[0] for b in BLOCKS])
def test_examples(number: str, right: str, wrong: str, tmp_path: Path) -> None:
    layer = {"balance": [[1.0] * 64] * 8, "margin": 0.25}
    (tmp_path / "calibration.json").write_text(json.dumps({"layers": [layer]}), encoding="utf-8")
    load_example(number, right, tmp_path)
    with pytest.raises(SpecError) as caught:
        load_example(number, wrong, tmp_path)
    rules = {problem.rule for problem in caught.value.problems}
    assert rules == {number}


def test_the_lean_setting_is_right() -> None:
    example = README.split("make a lean setting:\n\n```yaml\n")[1].split("```")[0]
    lean = spec.loads(complete(example), "llama3_8b.yaml")
    assert (lean.routing.subpage, lean.sketch.bits, lean.candidates.mass) == (8, 2, 0.955)


def test_the_near_dense_setting_is_right() -> None:
    example = README.split("in a near-dense setting:\n\n```yaml\n")[1].split("```")[0]
    near = spec.loads(complete(example), "llama3_8b.yaml")
    assert (near.routing.pages, near.sketch.bits, near.candidates.mass, near.candidates.min_tokens) == (256, 2, 0.97, 256)


def test_every_key_is_in_the_table() -> None:
    for key, setting in settings_of(Spec).items():
        inner = settings_of(setting.kind) if setting.is_section else {}
        rows = {f"{key}.{name}": one.doc for name, one in inner.items()} or {key: setting.doc}
        for path, doc in rows.items():
            assert re.search(rf"^\| `{re.escape(path)}` \| [^|]+ \| {re.escape(doc)} \|$", README, re.MULTILINE)
