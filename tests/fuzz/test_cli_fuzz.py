"""Whatever a spec or a command line holds, a command ends with one of its exit codes, a message and a next step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vashista_gen.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
TINY = (ROOT / "specs" / "tiny.yaml").read_bytes()
KNOWN = {command.name or command.callback.__name__ for command in app.registered_commands}
READING = sorted(KNOWN & {"check", "explain"})
PIECES = [
    b"\x00",
    b"\xff",
    b"{",
    b"}",
    b":",
    b"\n",
    b"\t",
    b"- ",
    b"-1",
    b"0",
    b"99999999999",
    b"null",
    b"[]",
    b"&a *a",
    b"all",
]
PIECES += [
    b"16",
    b"mean",
    b"box",
    b"HND",
    b"NHD",
    b"bfloat16",
    b"4",
    b"1e308",
    b".nan",
    b"'",
    b'"',
    b"!!python/object:os.system x",
]
NUMBERS = [b"-1", b"0", b"1", b"2", b"3", b"7", b"16", b"48", b"64", b"4096", b"2147483648", b"1e9"]
fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ends_well(*words):
    """Runs a command; checks how it ends and returns its exit code."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    said = result.stdout + result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
    assert result.exit_code in (0, 1, 2, 3) and "Traceback" not in said, said
    assert (result.exit_code == 0) == (result.stderr == ""), said
    if result.exit_code:
        assert "next: " in result.stderr, said
    return result.exit_code


@st.composite
def edited(draw):
    """The tiny spec after one to three edits of its bytes: a piece put in or in place of some, a number changed."""
    data = TINY
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            digits = [i for i in range(len(data)) if data[i : i + 1].isdigit()] or [0]
            at = draw(st.sampled_from(digits))
            data = data[:at] + draw(st.sampled_from(NUMBERS)) + data[at + 1 :]
        else:
            at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 6))
            data = data[:at] + draw(st.sampled_from(PIECES)) + data[at + length :]
    return data


@pytest.mark.parametrize("command", READING)
@settings(fuzz, max_examples=50)
@given(st.one_of(st.binary(max_size=80), edited()))
@example(TINY)
def test_reading_commands(here, command, data):
    (here / "tiny.yaml").write_bytes(data)
    code = ends_well(command, "tiny.yaml")
    assert code in (0, 2)
    assert code == 0 or data != TINY


@settings(fuzz, max_examples=25)
@given(edited())
@example(TINY)
@example(TINY.replace(b"pages: 4", b"pages: 4096"))
def test_generate(here, data):
    """What is generated compiles as Python and is current at once; what is refused leaves nothing behind."""
    (here / "tiny.yaml").write_bytes(data)
    out = here / f"out{len(list(here.iterdir()))}"
    if ends_well("generate", "tiny.yaml", "--out", out):
        assert not list(out.rglob("*.py"))
        return
    assert ends_well("generate", "tiny.yaml", "--out", out, "--check") == 0
    for path in out.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), path, "exec")


WORDS = [
    "--out",
    "--check",
    "--diff",
    "--force",
    "--context",
    "--batch",
    "--target",
    "--help",
    "-h",
    "--",
    "-x",
    "",
    " ",
    ".",
]
WORDS += [
    "..",
    "/dev/null",
    "tiny.yaml",
    "missing.yaml",
    "a" * 300,
    "\x00",
    "\udc80",
    "é.yaml",
    "-1",
    "0",
    "8k",
    "1M",
    "c",
    "out",
]


@settings(fuzz, max_examples=50)
@given(st.sampled_from(sorted(KNOWN & {"check", "generate", "explain"})), st.lists(st.sampled_from(WORDS), max_size=4))
@example("check", ["\x00"])
@example("generate", ["tiny.yaml", "--out", "\x00"])
@example("explain", ["tiny.yaml", "--context", "9" * 400])
@example("explain", ["tiny.yaml", "--batch", "9" * 30])
def test_any_words(here, command, words):
    (here / "tiny.yaml").write_bytes(TINY)
    # without a folder of its own a bare `generate` would write into the checkout
    given = [*words, "--out", "out"] if command == "generate" else words
    ends_well(command, *given)


@pytest.mark.skipif("new" not in KNOWN, reason="there is no command `new`")
@settings(fuzz, max_examples=50)
@given(st.lists(st.sampled_from([*WORDS, "name", "32", "128"]), max_size=5))
def test_any_words_of_new(here, words):
    ends_well("new", *words)


@pytest.mark.skipif(sys.platform == "win32", reason="file modes")
def test_files_that_cannot_be_read(here):
    (here / "folder.yaml").mkdir()
    (here / "loop.yaml").symlink_to("loop.yaml")
    (here / "dangling.yaml").symlink_to("nowhere")
    for name in ("folder.yaml", "loop.yaml", "dangling.yaml", "nowhere/tiny.yaml"):
        for command in ("check", "explain"):
            assert ends_well(command, name) == 2
        assert ends_well("generate", name, "--out", "out") == 2
