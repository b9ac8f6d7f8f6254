"""Whatever the bytes, loading gives a Spec or a SpecError; nothing else escapes, and every message can be printed."""

from __future__ import annotations

from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from vashista_gen import spec
from vashista_gen.errors import SpecError

SPECS = Path(__file__).resolve().parents[2] / "specs"
VALID = (SPECS / "llama3_8b.yaml").read_text(encoding="utf-8")
FULL = (
    VALID.replace("dense_below: 1024", "min_tokens: 64, pages: null")
    .replace("kind: none", "kind: rigorous, tolerance: 0.1, every: 16, heads: 2, margin: null, expand_pages: 256")
    .replace("transform: page_channel", "transform: hadamard, balance: null")
    .replace("fallback: capped", "fallback: expand")
)
FRAGMENTS = [
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        ",",
        "\n",
        "\t",
        "- ",
        "? ",
        "&a ",
        "*a",
        "!!int ",
        "!x ",
        "<<: ",
        "---\n",
        "...\n",
    ),
    *(
        "null",
        "~",
        "yes",
        "no",
        ".inf",
        ".nan",
        "-1",
        "0",
        "1e999",
        "1e-3",
        "0x10",
        "017",
        "9" * 5000,
        "1:30",
        "2024-01-01",
    ),
    *(
        "'",
        '"',
        '"\\uD800"',
        '"\\UFFFFFFFF"',
        "%YAML 1.1\n",
        "\x00",
        "\x85",
        "\u2028",
        "\ufeff",
        "\ud800",
        "é",
        "all",
        "c",
    ),
]


def check(data: bytes | str) -> None:
    """Load and, if it fails, print: problems in order, each with its rule, a line inside the text and one next step."""
    try:
        loaded = spec.loads(data, "llama3_8b.yaml")
    except SpecError as error:
        assert error.problems
        str(error).encode("utf-8")
        assert len(str(error).split("\n")) == 2 * len(error.problems)
        for problem in error.problems:
            assert problem.rule in spec.RULES and problem.line >= 1 and problem.hint
    else:
        assert spec.loads(VALID, "llama3_8b.yaml").name == loaded.name == "llama3_8b"
        loaded.to_dict()


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
@example(b'"\\UFFFFFFFF"')
@example(b'name: "\\uD800"')
@example(b"[" * 5000)
@example(b"{a: " * 5000)
@example(b"? " * 3000)
@example(b"%YAML 1." + b"9" * 5000 + b"\n--- a")
@example(b"\xff\xfen\x00a\x00")
@example(b"a" * 300_000)
def test_any_bytes(data: bytes) -> None:
    check(data)


@st.composite
def edited(draw: st.DrawFn) -> str:
    """A valid spec after a few edits: a fragment put in or in place of a stretch, a line doubled, moved or removed."""
    text = draw(st.sampled_from([VALID, FULL]))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        if draw(st.booleans()):
            length = draw(st.integers(0, 12))
            text = text[:start] + draw(st.sampled_from(FRAGMENTS)) + text[start + length :]
        else:
            lines = text.split("\n")
            source, target = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
            line = lines[source] if draw(st.booleans()) else lines.pop(source)
            if draw(st.booleans()):
                lines.insert(target, line)
            text = "\n".join(lines)
    return text


@settings(deadline=None, max_examples=300)
@given(edited())
def test_edits_of_a_valid_spec(text: str) -> None:
    check(text)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(sorted({w for w in FULL.replace(",", " ").replace("}", " ").split() if w.isalnum()})),
    st.sampled_from([*FRAGMENTS, "file.json", "../file.json", "0.5", "1e-3"]),
)
def test_one_value_replaced(word: str, fragment: str) -> None:
    for text in (VALID, FULL):
        check(text.replace(f" {word}", f" {fragment}"))


def test_the_full_spec_uses_every_key() -> None:
    loaded = spec.loads(FULL, "llama3_8b.yaml")
    assert loaded.certificate.every == 16 and loaded.candidates.mass == 0.98 and loaded.sketch.transform == "hadamard"
