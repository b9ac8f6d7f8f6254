"""Sections that depend on each other: a combination breaks exactly the rules that a second list says, or is planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vashista_gen import spec
from vashista_gen.cli import words
from vashista_gen.errors import SpecError
from vashista_gen.plan import cost, make_plan

BASE = {
    "name": "drawn",
    "model": {"num_q_heads": 6, "num_kv_heads": 2, "head_dim": 32},
    "cache": {"page_size": 16},
}
PAGES, KEPT, PAGE_SIZE = 8, 3, 16  # of these pages three are always kept: one sink page and two recent ones


def sections() -> st.SearchStrategy[dict]:
    """Values each of which is allowed somewhere, in any combination; a key may be missing."""
    given_keys = lambda **keys: st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(values) for name, values in keys.items()}
    )
    return st.fixed_dictionaries(
        {
            "routing": given_keys(
                summary=["mean", "subpage_mean", "box", "sketch"], summary_bits=[4, 16], dense_up_to=[None, 0, 512]
            ),
            "sketch": given_keys(
                bits=[None, 2, 4, 8], transform=["page_channel", "hadamard"], balance=[None, "file.json"]
            ),
            "candidates": given_keys(
                tokens=["all", 1, 64, 128], share=["group", "head"], mass=[None, 0.5, 1], min_tokens=[None, 1, 65],
                pages=[None, 2, 3, 8, 9], dense_below=[0, 64],
            ),
            "certificate": given_keys(
                kind=["none", "estimate", "calibrated", "rigorous"], tolerance=[0.5], every=[16], heads=[2],
                margin=[None, "file.json"], expand_pages=[None, 15, 16, 100],
            ),
        },
        optional={
            "attention": given_keys(solver=["softmax", "entropic_projection", "frank_wolfe"], iterations=[8]),
            "fallback": st.sampled_from(["capped", "dense", "expand"]),
        },
    )  # fmt: skip


def broken(drawn: dict) -> set[str]:
    """The rules a combination breaks, from what the rules say."""
    routing, sketch, candidates, certificate = (
        drawn[key] for key in ("routing", "sketch", "candidates", "certificate")
    )
    bits, kind, fallback = sketch.get("bits"), certificate.get("kind", "none"), drawn.get("fallback", "capped")
    tokens, mass, pages = candidates.get("tokens", "all"), candidates.get("mass"), candidates.get("pages")
    least, most, group = (
        candidates.get("min_tokens"),
        certificate.get("expand_pages"),
        "head" not in candidates.values(),
    )
    attention = drawn.get("attention", {})
    by_sketch, projects = routing.get("summary") == "sketch", attention.get("solver", "softmax") != "softmax"
    none = kind == "none"
    rules = {
        "R25": tokens != "all" and tokens < KEPT * PAGE_SIZE,
        "R27": none and fallback != "capped",
        "R30": candidates.get("dense_below", 0) > 0 and tokens == "all",
        "R31": bits is None and ("transform" in sketch or sketch.get("balance") is not None),
        "R32": by_sketch and (bits is None or "summary_bits" in routing),
        "R33": (mass is not None and (tokens == "all" or not group))
        or (least is not None and (mass is None or (tokens != "all" and least > tokens))),
        "R34": pages is not None and (not KEPT <= pages <= PAGES or tokens != "all" or not group),
        "R35": (kind in ("rigorous", "calibrated") and bits is None) or (kind == "estimate" and by_sketch),
        "R36": none and bool({"tolerance", "every", "heads"} & certificate.keys()),
        "R37": (kind == "calibrated") != (certificate.get("margin") is not None),
        "R38": most is not None and (fallback != "expand" or most < 2 * PAGES),
        "R39": "iterations" in attention and not projects,
        "R40": projects and tokens == "all",
        "R43": projects and not none,
        "R44": projects and routing.get("dense_up_to") is not None,
    }
    return {rule for rule, is_broken in rules.items() if is_broken}


def mended(drawn: dict) -> dict:
    """The combination with keys removed or changed until no rule is broken."""
    routing, sketch, candidates, certificate = (
        drawn[key] for key in ("routing", "sketch", "candidates", "certificate")
    )
    drop = lambda section, *keys: [section.pop(key, None) for key in keys]
    mend = {
        "R25": lambda: candidates.update(tokens=64),
        "R27": lambda: drop(drawn, "fallback"),
        "R30": lambda: drop(candidates, "dense_below"),
        "R31": lambda: drop(sketch, "transform", "balance"),
        "R32": lambda: (drop(routing, "summary_bits"), sketch.update(bits=4)),
        "R33": lambda: (drop(candidates, "min_tokens", "share", "pages"), candidates.update(tokens=64)),
        "R34": lambda: drop(candidates, "pages"),
        "R35": lambda: (sketch.update(bits=8), certificate.update(kind="rigorous")),
        "R36": lambda: drop(certificate, "tolerance", "every", "heads"),
        "R37": lambda: (
            drop(certificate, "margin") if "margin" in certificate else certificate.update(margin="file.json")
        ),
        "R38": lambda: drop(certificate, "expand_pages"),
        "R39": lambda: drop(drawn["attention"], "iterations"),
        "R40": lambda: (drop(candidates, "pages"), candidates.update(tokens=64)),
        "R43": lambda: drop(drawn, "attention"),
        "R44": lambda: drop(routing, "dense_up_to"),
    }
    while rules := broken(drawn):
        mend[min(rules)]()
    return drawn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the calibration file that is named."""
    folder = tmp_path_factory.mktemp("calibration")
    layer = {"balance": [[1.0] * 16] * 2, "margin": 0.25, "budgets": [16, 32]}
    (folder / "file.json").write_text(json.dumps({"layers": [layer]}), encoding="utf-8")
    return folder


def written(drawn: dict) -> str:
    """The combination as a spec's text."""
    return yaml.safe_dump({**BASE, **drawn, "routing": {"pages": PAGES, **drawn["routing"]}})


@settings(deadline=None, max_examples=300)
@given(sections())
@example({"routing": {}, "sketch": {}, "candidates": {"pages": 3, "mass": 1}, "certificate": {"kind": "estimate"}})
@example({"routing": {}, "sketch": {"bits": 2}, "candidates": {"tokens": 1}, "certificate": {"kind": "rigorous"}})
def test_exactly_the_broken_rules_are_reported(folder: Path, drawn: dict) -> None:
    reported = set()
    try:
        spec.loads(written(drawn), "drawn.yaml", folder)
    except SpecError as error:
        reported = {problem.rule for problem in error.problems}
        assert len({(problem.line, problem.message) for problem in error.problems}) == len(error.problems)
    assert reported == broken(drawn)


@settings(deadline=None, max_examples=200)
@given(sections().map(mended))
def test_what_breaks_no_rule_is_planned(folder: Path, drawn: dict) -> None:
    loaded = spec.loads(written(drawn), "drawn.yaml", folder)
    assert spec.loads(yaml.safe_dump(loaded.to_dict()), "drawn.yaml", folder) == loaded
    check_plan(loaded)


def check_plan(loaded: spec.Spec) -> None:
    """What is planned for a spec can be counted and put into words."""
    plan = make_plan(loaded)
    plan.constants()
    assert 1 <= plan.least_tokens <= plan.kept_tokens <= PAGES * PAGE_SIZE
    assert len(set(plan.kernels)) == len(plan.kernels)
    assert ("certify" in plan.kernels) is plan.certified and ("merge_failed" in plan.kernels) is plan.retries
    for text in (words.summary(plan), words.candidates(plan), words.certificate(plan), words.routing(plan)):
        assert text and "None" not in text and "{" not in text
    assert {name for name, _ in words.kernels(plan)} == set(plan.kernels)
    for context in (0, 1, 128, 129, 4096):
        step = cost.sparse_bytes(plan, context)
        assert step.certificate == (cost.certificate_bytes(plan, context) if plan.retries else 0)
        routed = context > PAGES * PAGE_SIZE
        read = plan.sketch and (plan.token_list or (routed and plan.scores_by_sketch))
        assert (step.sketches > 0) == (context > 0 and read)
        assert (step.summaries > 0) == (routed and not plan.scores_by_sketch)
