"""What must not be in the CUDA source of a kernel."""

import re

BODY = r"(?:(?!\n *\}).)*"
BRANCHES = re.compile(
    rf"if \((?P<when>[^\n]*)\) \{{\n(?P<one>{BODY})\n *\}} else \{{\n(?P<other>{BODY})\n *\}}", re.S
)
NAMES = re.compile(r"\b(broadcast_var|condval|v_|_)_*\d*\b")


def alike_branches(source: str) -> list[str]:
    """The conditions of an `if` whose two branches do the same: what told them apart was taken for a constant.

    TileLang takes two converted loads of one tensor in a vector loop for the same load, so that their difference is 0.
    """
    plain = lambda text: " ".join(NAMES.sub("name", text).split())
    return [found["when"] for found in BRANCHES.finditer(source) if plain(found["one"]) == plain(found["other"])]
