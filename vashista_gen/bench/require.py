"""Numbers of tokens ("64k") and what a run must reach: NAME@CONTEXT>=X."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vashista_gen.errors import UsageError

RATIOS = {"speedup": "SDPA time / sparse time", "dense_speedup": "SDPA time / dense op time",
          "refreshed_speedup": "SDPA time / mean time of routing.refresh steps",
          "over_dense": "dense op time / sparse time", "sparse_vs_flashinfer": "FlashInfer time / sparse time",
          "dense_vs_flashinfer": "FlashInfer time / dense op time",
          "attend_vs_flashinfer_pages": "FlashInfer time over the routed pages / time of attention to given pages",
          "attend_vs_tilelang_pages": "time of TileLang's example over the routed pages / the same",
          "choice": "dense op time / time of the step that chooses dense itself"}  # fmt: skip
_FACTORS = {"": 1, "k": 1024, "m": 1024**2}
_FORM = "write --require 'speedup@8k>=3', with " + " or ".join(RATIOS)


@dataclass(frozen=True)
class Requirement:
    """The ratio `name` at a context must be at least `least`."""

    text: str
    name: str
    context: int
    least: float

    def miss(self, ratios: Mapping[int, Mapping[str, float | None]]) -> str | None:
        """What is wrong, in one line, given {context: {name: ratio}}; None when the requirement is met."""
        found = ratios.get(self.context, {}).get(self.name)
        if found is None:
            return f"{self.text}: not measured"
        if not found >= self.least:  # not `<`: NaN must fail
            return f"{self.text}: {found:.3f}, missed by {self.least - found:.3f}"
        return None


def requirement(text: str) -> Requirement:
    """The requirement written as "speedup@8k>=3". Raises UsageError for anything else."""
    match = re.fullmatch(r"\s*(\w+)\s*@\s*(\w+)\s*>=\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*", text)
    if match is None or match[1] not in RATIOS:
        raise UsageError(f"--require {text}: not a ratio, a context and a number", _FORM)
    return Requirement(text.strip(), match[1], tokens(match[2], f"--require {text}", _FORM), float(match[3]))


def tokens(word: str, option: str, step: str) -> int:
    """A number of tokens, at least 1, less than 2^31: k is 1024 and M 1024^2."""
    match = re.fullmatch(r"([0-9]{1,10})([km]?)", word.lower())
    count = int(match[1]) * _FACTORS[match[2]] if match else 0
    if not 1 <= count < 2**31:
        raise UsageError(f"{option}: {word!r} is not a number of tokens", step)
    return count


def short(count: int) -> str:
    """64k and 1M where it is a multiple, else the number."""
    for unit, factor in (("M", 1024**2), ("k", 1024)):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)
