"""Results that are done already, one file for each document and contestant: an evaluation that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


class Store:
    """Records by what they depend on: `key` names everything that would change the figures."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: tuple) -> dict[str, Any] | None:
        """The record of a key, or None. A file that is no JSON, as of a full disk, counts as none."""
        try:
            return json.loads(self._path(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def put(self, key: tuple, record: dict[str, Any]) -> None:
        """Writes a record; a reader or a kill sees the whole of it or none."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(key)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(record), encoding="utf-8")
        os.replace(scratch, path)

    def _path(self, key):
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return self._folder / f"{digest[:24]}.json"
