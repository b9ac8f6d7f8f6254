"""Runs the command line in this process or in one of its own, and checks how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from vashista_gen.cli.main import app

ROOT = Path(__file__).resolve().parents[2]


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def script(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vashista_gen.cli.main", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def assert_error(result: Result, code: int, error: str, step: str) -> None:
    """The command ended with `code`, an error line that holds `error` and a next line that holds `step`."""
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert any(line.startswith("error: ") and error in line for line in lines), result.stderr
    assert any(line.startswith("next: ") and step in line for line in lines), result.stderr
    assert "Traceback" not in result.output
