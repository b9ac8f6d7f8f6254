"""The contestants: the spec as it is written, the same and its peers at each budget, dense, and an oracle.

Every peer is a spec of its own, derived from the user's and compiled like it, so that all go through generated ops.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from vashista_gen import emit
from vashista_gen.errors import MissingEnvironmentError, SpecError, UsageError
from vashista_gen.eval import attend
from vashista_gen.eval.pages import SharedPages
from vashista_gen.plan import cost, make_plan
from vashista_gen.spec import Spec, loads

ROUTERS = {
    "spec": "the spec",
    "mean": "mean of a page's keys (the paper)",
    "quest": "box, upper bound (Quest)",
    "recent": "sinks and recent tokens only",
    "oracle": "oracle, exact top tokens",
}
WRITTEN = "as written"


@dataclass(frozen=True)
class Contestant:
    """One way to attend. budget: tokens a KV head may attend to, None for dense; spec: None for the oracle.

    also: a spec beside the one that is evaluated, as written.
    """

    router: str
    budget: int | None
    spec: Spec | None
    as_written: bool = False
    also: bool = False

    @property
    def name(self) -> str:
        """Such as mean@512; `spec` alone is the spec as written, another spec has its own name."""
        if self.also:
            return self.spec.name
        return self.router if self.budget is None or self.as_written else f"{self.router}@{self.budget}"

    @property
    def label(self) -> str:
        """For people."""
        if self.router == "dense":
            return "dense"
        if self.also:
            return f"{self.spec.name}, {WRITTEN}"
        return f"{ROUTERS[self.router]}, {WRITTEN}" if self.as_written else ROUTERS[self.router]

    def share(self, spec: Spec, context: int, kept: float | None = None) -> float:
        """Bytes a step reads over dense bytes, as plan.cost counts them; the oracle: K and V of its tokens alone.

        kept: tokens of a KV head, where fewer than the most are kept.
        """
        if self.router == "dense":
            return 1.0
        if self.spec is None:
            return min(1.0, self.budget / context)
        plan = make_plan(self.spec)
        found = cost.sparse_bytes(plan, context)
        read = found.total
        if kept is not None:
            read -= (found.keys + found.values) * (1 - kept / cost.kept_tokens(plan, context))
        return read / cost.dense_bytes(make_plan(spec), context).total


def tokens_of(spec: Spec) -> int:
    """Tokens a KV head attends to at most: K_c, or those of the pages kept."""
    kept = spec.candidates.pages or spec.routing.pages
    return spec.candidates.tokens or kept * spec.cache.page_size


def make(
    spec: Spec, budgets: Sequence[int], routers: Sequence[str], context: int, others: Sequence[Spec] = ()
) -> tuple[list[Contestant], dict]:
    """(dense first and then the others, {name: why} of those that the spec's rules do not allow).

    others: further specs, each a contestant as it is written. Raises UsageError for a router that is not known, a
    budget that is not whole pages or covers the context, and another spec of another shape, page size or used name.
    """
    unknown = [name for name in routers if name not in ROUTERS]
    if unknown:
        raise UsageError(f"no router {unknown[0]}", f"choose from {', '.join(ROUTERS)}")
    page = spec.cache.page_size
    for budget in budgets:
        if budget < 1 or budget % page:
            raise UsageError(
                f"a budget of {budget} tokens is not a whole number of pages of {page}",
                f"give multiples of {page}, such as --budgets {max(page, budget // page * page)}",
            )
        if budget >= context:
            raise UsageError(
                f"a budget of {budget} tokens keeps all of a context of {context}",
                "give a smaller one, or more --context",
            )
    found, refused = [Contestant("dense", None, spec)], {}
    if "spec" in routers:
        found.append(Contestant("spec", tokens_of(spec), spec, as_written=True))
    found += _others(spec, others)
    for router in routers:
        for budget in budgets:
            one = Contestant(router, budget, None)
            if router != "oracle":
                try:
                    one = Contestant(router, budget, derive(spec, router, budget))
                except SpecError as error:
                    refused[one.name] = "; ".join(f"{p.rule}: {p.message}" for p in error.problems)
                    continue
            if one.spec is None or not any(one.spec == other.spec for other in found[1:]):
                found.append(one)
    return found, refused


def _others(spec, others):
    names = {"dense", *ROUTERS, spec.name}
    for other in others:
        if (other.model, other.cache) != (spec.model, spec.cache):
            raise UsageError(
                f"{other.source.file} and {spec.source.file} differ in model or cache: no common figures",
                "give specs that differ in routing, sketch and candidates alone",
            )
        if other.name in names:
            raise UsageError(f"{other.name} is the name of two contestants", "rename a spec, file and name")
        names.add(other.name)
        yield Contestant("spec", tokens_of(other), other, as_written=True, also=True)


def derive(spec: Spec, router: str, budget: int) -> Spec:
    """The spec of a peer, or the spec itself with another budget. Raises SpecError where a rule forbids it."""
    page, given = spec.cache.page_size, spec.to_dict()
    if router == "spec":
        wanted: dict[str, Any] = copy.deepcopy(given)
        if spec.candidates.pages is not None:
            wanted["candidates"]["pages"] = budget // page
            wanted["routing"]["pages"] = max(spec.routing.pages, budget // page)
        elif spec.candidates.tokens is None:
            wanted["routing"]["pages"] = budget // page
        else:  # routed pages stay as they are, as long as they hold the budget
            wanted["candidates"]["tokens"] = budget
            wanted["routing"]["pages"] = max(spec.routing.pages, budget // page)
            if isinstance(given["candidates"].get("min_tokens"), int):
                wanted["candidates"]["min_tokens"] = min(budget, given["candidates"]["min_tokens"])
    else:
        pages = budget // page
        wanted = {key: given[key] for key in ("model", "cache", "attention")}
        wanted["routing"] = {
            "mean": {"summary": "mean", "summary_bits": 16, "pages": pages},
            "quest": {"summary": "box", "summary_bits": 16, "box_weight": 1.0, "pages": pages},
            "recent": {"summary": "mean", "pages": pages, "sink_pages": 1, "recent_pages": pages - 1},
        }[router]
    if wanted == given:
        return spec
    # the same spec with another name would be another package with the same kernels
    wanted["name"] = f"{spec.name[:40]}_{router}_{budget}"
    wanted["targets"] = ["c"]
    folder = Path(spec.source.file).parent  # of calibration files that it names
    return loads(yaml.safe_dump(wanted), f"{spec.name} as {router}@{budget}", folder)


class Packages:
    """Generated and compiled packages of specs, in a folder of their own; each is imported once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, ModuleType] = {}

    def get(self, spec: Spec) -> ModuleType:
        """The package, its C kernels ready. Raises MissingEnvironmentError where they cannot be compiled."""
        calibration = json.dumps(spec.calibration, sort_keys=True)
        key = hashlib.sha256((spec.source.text_sha256 + calibration).encode()).hexdigest()
        if key not in self._loaded:
            self._loaded[key] = self._load(spec, key)
        return self._loaded[key]

    def digest(self, spec: Spec) -> str:
        """sha256 of the package's sources: what its figures depend on, beside the model and the text."""
        folder = Path(self.get(spec).__file__).parent
        patterns = ("*.py", "kernels/*.py", "kernels/*.h", "calibration.json")
        sources = sorted(path for pattern in patterns for path in folder.glob(pattern))
        return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()

    def _load(self, spec, key):
        place = self._folder / key[:16]
        emit.apply(emit.compare([make_plan(spec.always_routed())], place, whole=False), place)
        name = f"vashista_gen_eval_{key[:16]}_{spec.name}"
        found = importlib.util.spec_from_file_location(name, place / spec.name / "__init__.py")
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        found.loader.exec_module(module)
        library = self._library(module)
        try:
            library.load("cpu", None)
        except library.LibraryError as error:
            message, _, step = str(error).partition("; next: ")
            raise MissingEnvironmentError(message, step or "vashista-gen doctor") from error
        return module

    @staticmethod
    def _library(module):
        return importlib.import_module(f"{module.__name__}.library")


def start(
    one: Contestant, packages: Packages, spec: Spec, pages: SharedPages, rows: slice, layer: int
) -> attend.Attender:
    """The contestant's attention of some rows of one layer; the layer's number finds what was calibrated for it."""
    if one.router == "oracle":
        model = spec.model
        formula = attend.Formula(model.sm_scale, model.logits_soft_cap, spec.attention.epsilon)
        return attend.Oracle(one.budget, formula, pages, rows)
    package = packages.get(one.spec)
    return attend.Dense(package, pages, rows) if one.router == "dense" else attend.Sparse(package, pages, rows, layer)
