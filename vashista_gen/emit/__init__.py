"""Plan -> {path: text} -> disk; no torch. Rendering is pure; only `write` touches the disk."""

from vashista_gen.emit.render import manifest_entry, render
from vashista_gen.emit.write import Change, apply, compare

__all__ = ["Change", "apply", "compare", "manifest_entry", "render"]
