"""Texts to read: long prose out of installed packages, or any UTF-8 file. Nothing is fetched."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vashista_gen.errors import MissingEnvironmentError, UsageError
from vashista_gen.eval.model import leading_token
from vashista_gen.eval.texts import OPTICKS

DEFAULTS = ("opticks", "pydoc:specialnames", "pydoc:compound")


@dataclass(frozen=True)
class Text:
    """A text by its name, where it comes from, and under which licence."""

    name: str
    source: str
    licence: str
    content: str

    @property
    def sha256(self) -> str:
        """Of the UTF-8 text."""
        return hashlib.sha256(self.content.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class Document:
    """`ids` int64 [1, tokens]: one window of a text; `name` is text and number, such as opticks[2]."""

    name: str
    text: Text
    ids: Any


def find(name: str) -> Text:
    """`opticks`, `pydoc:TOPIC`, or the path of a UTF-8 file; UsageError where there is none."""
    if name == "opticks":
        return _opticks()
    if name.startswith("pydoc:"):
        return _topic(name.partition(":")[2])
    try:
        return Text(Path(name).name, name, "not known", Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(
            f"cannot read the text {name}: {reason}", f"give a UTF-8 file, or one of {', '.join(DEFAULTS)}"
        ) from None


def windows(tokenizer: Any, text: Text, length: int, count: int, gguf: Path | None = None) -> list[Document]:
    """The first `count` windows of `length` tokens of a text, one after the other.

    Where the tokenizer, or the GGUF file it is out of, begins a text with a token of its own (BOS), every window begins
    with it. UsageError where the text is too short.
    """
    import torch

    plain = tokenizer(text.content, add_special_tokens=False, verbose=False).input_ids
    bos = leading_token(tokenizer, gguf)
    start = [] if bos is None else [bos]
    body = length - len(start)
    if len(plain) < body * count:
        raise UsageError(
            f"{text.name} has {len(plain)} tokens, and {count} window{'s' * (count > 1)} of {length} are asked for",
            "give a longer text with --text, fewer with --windows or a shorter longest context with --context",
        )
    pieces = [start + plain[i * body : (i + 1) * body] for i in range(count)]
    return [Document(f"{text.name}[{i}]", text, torch.tensor([ids])) for i, ids in enumerate(pieces)]


def _opticks() -> Text:
    found = importlib.util.find_spec("tvm_ffi")
    places = list(found.submodule_search_locations or ()) if found else []
    files = [path for place in places if (path := Path(place, OPTICKS)).is_file()]
    if not files:
        raise MissingEnvironmentError(
            "the text opticks comes with apache-tvm-ffi, and it is not installed here",
            "pip install apache-tvm-ffi, or give another --text",
        )
    content = files[0].read_text(encoding="utf-8", errors="replace")
    return Text("opticks", f"Isaac Newton, Opticks (1730), tvm_ffi/{OPTICKS}", "public domain", content)


def _topic(name: str) -> Text:
    from pydoc_data.topics import topics

    if name not in topics:
        raise UsageError(f"pydoc has no topic {name!r}", "pydoc:specialnames and pydoc:compound are long ones")
    source = f"Python's language reference, pydoc_data.topics.topics[{name!r}]"
    return Text(f"pydoc:{name}", source, "PSF licence", topics[name])
