"""What Hypothesis draws: shapes, seeds and adversarial families of a decode step, append sequences, and whole specs.

Tensor entries are not drawn: they follow from a case's seed and family (tests/op/subject.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st

FAMILIES = (
    "normal",  # keys, queries and values from a normal distribution
    "peaked",  # queries eight times larger: one token takes most of the weight
    "near_tie",  # keys that differ in the last bits only
    "one_hot",  # key j has one element, in channel j mod head_dim
    "duplicates",  # three distinct keys, repeated
    "huge",  # norms from 1 to 1e15 (to 100 in float16)
    "constant",  # one key for every token
    "zero_query",  # q = 0
    "outliers",  # two channels fifty times larger, as real keys have
    "lse_zero",  # every logit is -log n, so lse is 0 but for rounding
    "lse_low",  # every logit is -1e4
)
SKETCH_FAMILIES = (
    *FAMILIES,
    "tiny",  # norms of about 1e-25 (1e-8 to 1e-4 in float16, where queries reach the largest number)
    "zero_keys",  # every key is 0, queries are long
    "spread",  # norms from 1e-25 to 1e15
    "orthogonal",  # long queries and keys whose products nearly cancel; one distinct key, or three
    "common_value",  # values that differ little from one that is a million times as long
)


def examples(count: int) -> settings:
    """Settings of a test whose one example costs much: `count` examples, 20 times as many in the profile deep."""
    return settings(max_examples=max(1, count * settings.default.max_examples // 100))


@dataclass(frozen=True)
class Length:
    """Tokens of a sequence, relative to a spec: eighths of the routed budget, then whole pages, then tokens."""

    eighths: int = 0
    pages: int = 0
    tokens: int = 0

    def of(self, page_size: int, routed_pages: int) -> int:
        """The number of tokens for a spec, at least 0."""
        return max(0, (self.eighths * routed_pages // 8 + self.pages) * page_size + self.tokens)


@dataclass(frozen=True)
class Case:
    """One decode step: a sequence length for each row of the batch, and how its tensors are made."""

    lengths: tuple[Length, ...]
    seed: int = 0
    family: str = "normal"


EMPTY, ONE, LONG = Length(), Length(tokens=1), Length(eighths=20, tokens=3)

lengths = st.one_of(
    st.sampled_from([EMPTY, ONE]),
    st.builds(Length, pages=st.integers(0, 3), tokens=st.integers(-1, 17)),
    st.builds(Length, eighths=st.integers(0, 16), pages=st.integers(0, 1), tokens=st.sampled_from([-1, 0, 1, 5])),
    st.builds(Length, eighths=st.integers(9, 24), tokens=st.integers(-20, 20)),
)


def cases(min_batch: int = 1, max_batch: int = 3, families: tuple[str, ...] = FAMILIES) -> st.SearchStrategy[Case]:
    """Decode steps of every family; at least every other one has a sequence past the routed budget."""
    batch = st.lists(lengths, min_size=min_batch, max_size=max_batch)
    routed = st.builds(Length, eighths=st.integers(9, 24), tokens=st.integers(-20, 20))
    batches = st.one_of(batch, st.tuples(batch, routed).map(lambda x: [*x[0][1:], x[1]]))
    return st.builds(Case, batches.map(tuple), st.integers(0, 2**16), st.sampled_from(families))


@dataclass(frozen=True)
class Append:
    """Appends `tokens` to a row."""

    row: int
    tokens: int


@dataclass(frozen=True)
class Free:
    """Ends a row; its pages may be taken by any row after that."""

    row: int


def histories(rows: int) -> st.SearchStrategy[list[Append | Free]]:
    """Sequences of appends (one token, a page boundary, several pages) and frees."""
    row = st.integers(0, rows - 1)
    append = st.builds(Append, row, st.one_of(st.integers(1, 3), st.integers(1, 70), st.sampled_from([15, 16, 17, 64])))
    return st.lists(st.one_of(append, append, append, st.builds(Free, row)), min_size=1, max_size=12)


@st.composite
def specs(draw: st.DrawFn) -> dict:
    """Valid specs, as their YAML states them, small enough to compile and run in seconds; no name yet."""
    choose = lambda *options: draw(st.sampled_from(options))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    page_size, pages = choose(16, 16, 32, 64), draw(st.integers(1, 8))
    recent = draw(st.integers(1, pages))
    model = {
        "num_q_heads": kv_heads * group,
        "num_kv_heads": kv_heads,
        "head_dim": choose(16, 32, 48, 64, 80),
        "dtype": choose("bfloat16", "float16", "float32"),
        "sm_scale": choose("default", 0.2, 1.0),
        "logits_soft_cap": choose(None, None, 20.0),
    }
    routing = {
        "pages": pages,
        "summary": choose("mean", "subpage_mean", "box"),
        "summary_bits": choose(16, 8, 4),
        "recent_pages": recent,
        "sink_pages": draw(st.integers(0, pages - recent)),
        "group_reduce": choose("softmax_sum", "max"),
    }
    if routing["summary"] == "subpage_mean":
        routing["subpage"] = choose(2, 4, 8, 16)
    if routing["summary"] == "box":
        routing["box_weight"] = choose(1.0, 0.5, 0.0)
    sketch: dict = {"bits": choose(None, None, 2, 4, 8)}
    if sketch["bits"] is not None:
        sketch["transform"] = choose("page_channel", "hadamard")
        if choose(True, False):
            routing = {key: routing[key] for key in ("pages", "recent_pages", "sink_pages", "group_reduce")}
            routing["summary"] = "sketch"
    candidates: dict = {"tokens": "all", "share": choose("group", "head")}
    if choose(True, True, False):
        always = (recent + routing["sink_pages"]) * page_size
        candidates["tokens"] = draw(st.integers(always, pages * page_size))
        candidates["dense_below"] = choose(0, 0, pages * page_size // 2)
        if candidates["share"] == "group" and choose(True, False):
            candidates["mass"] = choose(0.5, 0.9, 0.99)
            candidates["min_tokens"] = choose(None, 1, candidates["tokens"])
    elif candidates["share"] == "group" and choose(True, False):
        candidates["pages"] = draw(st.integers(recent + routing["sink_pages"], pages))
    kinds = ["none", *(["rigorous"] * 2 if sketch["bits"] else [])]
    kinds += ["estimate"] if routing["summary"] != "sketch" else []
    certificate: dict = {"kind": choose(*kinds)}
    if certificate["kind"] != "none":
        certificate |= {"tolerance": choose(0.05, 0.3, 0.9), "every": choose(1, 1, 2), "heads": choose(1, 1, 2)}
    if certificate["kind"] != "estimate":
        routing["refresh"] = choose(1, 1, 2, page_size)
    return {
        "sketch": sketch,
        "certificate": certificate,
        "fallback": "capped" if certificate["kind"] == "none" else choose("capped", "dense", "expand"),
        "model": model,
        "cache": {"page_size": page_size, "layout": choose("NHD", "HND")},
        "routing": routing,
        "candidates": candidates,
        "attention": {"epsilon": choose(1.0, 1.0, 0.5)},
        "targets": ["c"],
    }
