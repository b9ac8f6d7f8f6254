"""The gallery: every picture is shown with the command that drew it, and is small."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

import vashista_gen
from vashista_gen.cli.main import app

FOLDER = Path(vashista_gen.__file__).parent / "gallery"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^`(vashista-gen [^`]+)`", PAGE, re.MULTILINE)


def test_pictures_are_shown_and_small():
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", PAGE)
    assert sorted(shown) == sorted(path.name for path in FOLDER.glob("*.png")) and 0 < len(shown) < 8
    for name in shown:
        data = (FOLDER / name).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) < 100_000, name
    assert len(COMMANDS) == len(shown)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_ones_of_the_tool(command):
    """Names and options are parsed as the command line parses them; nothing runs."""
    _, name, *words = shlex.split(command)
    typer.main.get_command(app).commands[name].make_context(name, words)  # raises for what it does not know
