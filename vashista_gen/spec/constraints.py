"""The rules that tie several keys together. Each check runs when every key it needs has a valid value."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from vashista_gen.spec.fields import Values
from vashista_gen.spec.footprint import attention_tile, solver_bytes
from vashista_gen.spec.hardware import hardware_of
from vashista_gen.spec.model import Spec
from vashista_gen.spec.report import Report, listed
from vashista_gen.spec.setting import settings_of

Problems = Iterator[tuple[str, str, str]]  # key whose line is named, message, hint


@dataclass(frozen=True)
class _Check:
    rule: str
    needs: tuple[str, ...]
    run: Callable[..., Problems]


_CHECKS: list[_Check] = []


def _check(rule: str, *needs: str) -> Callable[[Callable[..., Problems]], Callable[..., Problems]]:
    """Register a check of `rule`; it is called with the values of the keys in `needs`, in that order."""

    def register(run: Callable[..., Problems]) -> Callable[..., Problems]:
        _CHECKS.append(_Check(rule, needs, run))
        return run

    return register


def check_constraints(values: Values, report: Report) -> None:
    """Record a problem for each broken rule among R9 to R34 that concerns more than the value of one key."""
    _check_only_with(values, report)
    for check in _CHECKS:
        if all(key in values for key in check.needs):
            for key, message, hint in check.run(*(values[key] for key in check.needs)):
                report.add(_line(values, key), check.rule, message, hint)
    if "name" in values and PurePath(report.file).suffix in (".yaml", ".yml"):
        stem = PurePath(report.file).stem
        if values["name"] != stem:
            hint = f"set name to {stem}, or rename the file to {values['name']}.yaml"
            report.add(
                _line(values, "name"),
                "R10",
                f"name is {values['name']}, the file is {PurePath(report.file).name}",
                hint,
            )


def _line(values: Values, key: str) -> int:
    """Line of `key`, of its list or section when it has none of its own, else 1."""
    for candidate in (key, key.split("[")[0], key.split(".")[0]):
        if candidate in values.lines:
            return values.lines[candidate]
    return 1


def _check_only_with(values: Values, report: Report) -> None:
    for section, outer in settings_of(Spec).items():
        for key, setting in settings_of(outer.kind).items() if outer.is_section else ():
            path = f"{section}.{key}"
            if setting.only_with is None or path not in values.lines:
                continue
            sibling, *wanted = setting.only_with
            actual = values[f"{section}.{sibling}"] if f"{section}.{sibling}" in values else wanted[0]
            if actual not in wanted:
                message = f"{path} has no meaning with {sibling}: {actual}"
                report.add(
                    values.lines[path],
                    setting.only_rule,
                    message,
                    f"remove {key}, or set {section}.{sibling} to {listed(wanted)}",
                )


@_check("R9", "name")
def _no_keyword(name: str) -> Problems:
    if keyword.iskeyword(name):
        yield "name", f"name {name} is a Python keyword", f"rename it, for example to {name}_spec"


@_check("R11", "model.num_q_heads", "model.num_kv_heads")
def _whole_groups(num_q_heads: int, num_kv_heads: int) -> Problems:
    if num_q_heads % num_kv_heads:
        divisors = ", ".join(str(d) for d in range(1, num_q_heads + 1) if num_q_heads % d == 0)
        yield (
            "model.num_q_heads",
            f"num_q_heads {num_q_heads} is not a multiple of num_kv_heads {num_kv_heads}",
            f"set model.num_kv_heads to a divisor of {num_q_heads}: {divisors}",
        )


@_check("R12", "model.num_q_heads", "model.num_kv_heads")
def _group_size(num_q_heads: int, num_kv_heads: int) -> Problems:
    if num_q_heads % num_kv_heads == 0 and num_q_heads // num_kv_heads > 16:
        yield (
            "model.num_kv_heads",
            f"group size {num_q_heads // num_kv_heads} ({num_q_heads} / {num_kv_heads}) is over 16, "
            "the rows of one tensor-core tile",
            f"check model.num_kv_heads: with {num_q_heads} query heads it is at least {-(-num_q_heads // 16)}",
        )


@_check("R17", "model.dtype", "cache.kv_dtype")
def _one_dtype(dtype: str, kv_dtype: str) -> Problems:
    if dtype != kv_dtype:
        message = f"kv_dtype {kv_dtype} differs from model.dtype {dtype}: mixed types are not compiled"
        yield "cache.kv_dtype", message, f"remove kv_dtype, or set it to {dtype}"


@_check("R19", "routing.subpage", "cache.page_size")
def _whole_subpages(subpage: int | None, page_size: int) -> Problems:
    if subpage is not None and page_size % subpage:
        divisors = ", ".join(str(2**i) for i in range(1, page_size.bit_length()))
        message = f"subpage {subpage} does not divide page_size {page_size}"
        yield "routing.subpage", message, f"set routing.subpage to one of {divisors}"


@_check("R23", "routing.sink_pages", "routing.recent_pages", "routing.pages")
def _kept_pages_fit(sink_pages: int, recent_pages: int, pages: int) -> Problems:
    kept = sink_pages + recent_pages
    if kept > pages:
        message = f"sink_pages {sink_pages} + recent_pages {recent_pages} is {kept}, over pages {pages}"
        yield "routing.pages", message, f"set routing.pages to at least {kept}, or lower sink_pages or recent_pages"


@_check("R25", "candidates.tokens", "routing.pages", "cache.page_size")
def _candidates_fit(tokens: int | None, pages: int, page_size: int) -> Problems:
    if tokens is not None and tokens > pages * page_size:
        message = f"tokens {tokens} is over pages {pages} * page_size {page_size} = {pages * page_size}"
        yield "candidates.tokens", message, f"set candidates.tokens to at most {pages * page_size}, or to all"


@_check("R30", "candidates.dense_below", "candidates.tokens", "routing.pages", "cache.page_size")
def _dense_contexts_are_routed_whole(dense_below: int, tokens: int | None, pages: int, page_size: int) -> Problems:
    routed = pages * page_size
    if dense_below and tokens is None:
        message = f"dense_below {dense_below} has no meaning with tokens: all, which drops no token"
        yield "candidates.dense_below", message, "remove dense_below, or set candidates.tokens to a number"
    elif dense_below > routed:
        message = f"dense_below {dense_below} is over pages {pages} * page_size {page_size} = {routed}"
        yield "candidates.dense_below", message, f"set candidates.dense_below to at most {routed}"


@_check("R27", "fallback", "certificate.kind")
def _fallback_can_happen(fallback: str, kind: str) -> Problems:
    if kind == "none" and fallback != "capped":
        message = f"fallback {fallback} never happens: certificate kind {kind} cannot fail"
        yield "fallback", message, "set fallback to capped"


@_check("R29", "targets", "cache.page_size", "model.head_dim", "model.dtype")
def _tile_fits(targets: tuple[str, ...], page_size: int, head_dim: int, dtype: str) -> Problems:
    for target in targets:
        tile = attention_tile(page_size, head_dim, dtype, target)
        if not tile.fits:
            yield (
                f"targets[{target}]",
                f"an attention tile of {tile.tokens} tokens (head_dim {head_dim}, {dtype}) needs "
                f"{tile.shared_bytes} bytes of shared memory a block, {target} has {tile.available_bytes}",
                f"remove {target} from targets, or set model.dtype to a smaller type",
            )


@_check("R32", "attention.solver", "candidates.tokens")
def _solver_has_a_list(solver: str, tokens: int | None) -> Problems:
    if solver != "softmax" and tokens is None:
        message = f"solver {solver} reads its candidates once an iteration, and tokens: all has no list of them"
        yield "attention.solver", message, "set candidates.tokens to a number, such as 512"


@_check("R33", "attention.solver", "model.logits_soft_cap")
def _solver_has_no_soft_cap(solver: str, soft_cap: float | None) -> Problems:
    if solver != "softmax" and soft_cap is not None:
        message = f"logits_soft_cap {soft_cap:g} has no meaning with solver {solver}, which has no logits"
        yield "attention.solver", message, "set attention.solver to softmax, or remove model.logits_soft_cap"


@_check(
    "R34", "attention.solver", "attention.iterations", "targets", "cache.page_size", "model.num_q_heads",
    "model.num_kv_heads", "model.head_dim", "model.dtype",
)  # fmt: skip
def _solver_fits(
    solver: str,
    iterations: int | None,
    targets: tuple[str, ...],
    page_size: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: str,
) -> Problems:
    for target in targets:
        group = num_q_heads // num_kv_heads
        if solver == "softmax" or target == "c" or not 1 <= group <= 16:
            continue
        tokens = attention_tile(page_size, head_dim, dtype, target).tokens
        needed = solver_bytes(solver, iterations or 0, tokens, group, head_dim, dtype)
        available = hardware_of(target).shared_bytes_per_block
        if needed > available:
            yield (
                f"targets[{target}]",
                f"solver {solver} (head_dim {head_dim}, group size {group}, {dtype}) needs {needed} bytes of shared "
                f"memory a block, {target} has {available}",
                f"remove {target} from targets, or set attention.solver to softmax",
            )
