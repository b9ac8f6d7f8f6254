"""Figures of whole documents, kept on disk: a long comparison that was stopped goes on with the next document."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from vashista_gen.diagnose.findings import Findings


class Parts:
    """One .npz file in `folder` for each document, named by all that its figures depend on."""

    def __init__(self, folder: Path, package: Any, model: str, positions: list[int]) -> None:
        self._folder = folder
        sources = sorted(p for p in Path(package.__path__[0]).rglob("*") if p.is_file() and p.suffix != ".pyc")
        self._of = hashlib.sha256(f"{model} {positions}".encode())
        for source in sources:
            self._of.update(source.read_bytes())

    def restore(self, document: Any, findings: Findings) -> bool:
        """Adds a document's figures to the findings, if they are here."""
        try:
            with np.load(self._path(document)) as held:
                findings.restore({name: held[name] for name in held.files})
        except FileNotFoundError:
            return False
        return True

    def keep(self, document: Any, findings: Findings) -> None:
        """Writes the figures of the document that was added last; a kill leaves the whole file or none."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(document)
        scratch = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(scratch, **findings.of_last_document())
        os.replace(scratch, path)

    def _path(self, document: Any) -> Path:
        digest = self._of.copy()
        digest.update(document.ids.numpy().tobytes())
        return self._folder / f"{digest.hexdigest()[:24]}.npz"
