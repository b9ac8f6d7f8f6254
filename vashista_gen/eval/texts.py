"""Long real texts that are on this machine already: each with its source and licence.

They come with Python (its language reference, inside pydoc_data) and with packages that the `run` extra installs:
Newton's Opticks inside apache-tvm-ffi, the docstrings of networkx and sympy. Files of the user's own work as well.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vashista_gen.errors import UsageError

PASSAGE = 110_000  # characters of one passage of a book: about 25,000 tokens
OPTICKS = "3rdparty/libbacktrace/Isaac.Newton-Opticks.txt"
# topics of pydoc_data that do not contain each other, in three documents of some 80,000 characters
REFERENCE = {
    "data model": ("specialnames", "types"),
    "statements and strings": ("compound", "formatstrings", "string-methods"),
    "types and tools": (
        "typesseq", "debugger", "typesmapping", "assignment", "comparisons", "execmodel", "strings", "import",
        "operator-summary", "calls", "identifiers", "objects",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A document: `read()` gives its whole text, or None where it is not installed."""

    name: str
    source: str
    licence: str
    read: Callable[[], str | None]


def known() -> list[Text]:
    """Every text this module can find, the most different ones first."""
    topics = [
        Text(
            f"python reference: {title}",
            f"pydoc_data.topics: {', '.join(names)}",
            "PSF-2.0",
            lambda names=names: _topics(names),
        )
        for title, names in REFERENCE.items()
    ]
    opticks = [
        Text(
            f"Newton's Opticks, passage {i + 1}",
            f"tvm_ffi/{OPTICKS}, characters {i * PASSAGE:,} to {(i + 1) * PASSAGE:,}",
            "public domain (1730, Project Gutenberg's transcription)",
            lambda i=i: _slice(_file("tvm_ffi", OPTICKS), i),
        )
        for i in range(5)
    ]
    networkx, sympy = (
        Text(
            f"{name} docstrings",
            f"docstrings of {name}/{folder}",
            "BSD-3-Clause",
            lambda name=name, folder=folder: _docstrings(name, folder),
        )
        for name, folder in (("networkx", "algorithms"), ("sympy", "functions"))
    )
    first = [topics[0], opticks[1], topics[1], networkx]
    return [*first, opticks[2], topics[2], sympy, opticks[3], opticks[4], opticks[0]]


def of_files(paths: Sequence[Path]) -> list[Text]:
    """Texts out of the user's own files, UTF-8. Raises UsageError for one that cannot be read as such."""
    return [Text(path.name, str(path), "your own file", functools.partial(_own, path)) for path in paths]


def encode(texts: Sequence[Text], tokenize: Callable[[str], list[int]], count: int, wanted: int) -> list[tuple]:
    """(text, its first `count` token ids) of the first `wanted` texts that are long enough.

    Raises UsageError, naming what each one has, where fewer than `wanted` are.
    """
    found, short = [], []
    for text in texts:
        if len(found) == wanted:
            break
        whole = text.read()
        if whole is None:
            short.append(f"{text.name}: not installed")
            continue
        ids = tokenize(whole[: 12 * count])  # no tokenizer here takes 12 characters of prose a token
        if len(ids) < count:
            ids = tokenize(whole)
        if len(ids) < count:
            short.append(f"{text.name}: {len(ids):,} tokens")
        else:
            found.append((text, ids[:count]))
    if len(found) < wanted:
        raise UsageError(
            f"{wanted} documents of {count:,} tokens are asked for and {len(found)} found ({'; '.join(short)})",
            "ask for fewer with --documents or --context, or give longer files with --text FILE",
        )
    return found


def _own(path):
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path} as text: {error}", "give a UTF-8 text file with --text") from None


def _topics(names):
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in names if name in topics)


def _folder(package):
    found = importlib.util.find_spec(package)
    return Path(next(iter(found.submodule_search_locations))) if found and found.submodule_search_locations else None


def _file(package, path):
    folder = _folder(package)
    return (folder / path).read_text(encoding="utf-8") if folder and (folder / path).is_file() else None


def _slice(text, index):
    return None if text is None else text[index * PASSAGE : (index + 1) * PASSAGE]


def _docstrings(package, below):
    """Docstrings of the functions and classes of a folder's files, long ones, in the order of the files."""
    root = _folder(package)
    if root is None:
        return None
    parts, held = [], 0
    for path in sorted((root / below).rglob("*.py")):
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                if len(text) > 400:
                    parts.append(text)
                    held += len(text)
        if held > 2 * PASSAGE:
            break
    return "\n\n".join(parts)
