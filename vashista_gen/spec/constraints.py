"""The rules that tie several keys together. Each check runs when every key it needs has a valid value."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from vashista_gen.spec.fields import Values
from vashista_gen.spec.footprint import attention_tile
from vashista_gen.spec.model import Spec
from vashista_gen.spec.report import Report
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
    """Record a problem for each broken rule among R9 to R38 that concerns more than the value of one key."""
    _check_only_with(values, report)
    _check_given(values, report)
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
            sibling, wanted = setting.only_with
            actual = values[f"{section}.{sibling}"] if f"{section}.{sibling}" in values else wanted
            if actual != wanted:
                message = f"{path} has no meaning with {sibling}: {actual}"
                report.add(
                    values.lines[path],
                    setting.only_rule,
                    message,
                    f"remove {key}, or set {section}.{sibling} to {wanted}",
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


def _check_given(values: Values, report: Report) -> None:
    """Rules about keys that may be given only beside another one."""
    for rule, keys, needed, hint in (
        ("R31", ("sketch.transform", "sketch.balance"), "sketch.bits", "set sketch.bits to 2, 4 or 8, or remove {key}"),
        ("R33", ("candidates.min_tokens",), "candidates.mass", "set candidates.mass, or remove {key}"),
    ):
        for key in keys:
            if key in values.lines and key in values and needed in values and values[needed] is None:
                report.add(values.lines[key], rule, f"{key} has no meaning without {needed}", hint.format(key=key))
    kind = values["certificate.kind"] if "certificate.kind" in values else ""
    for key in ("certificate.tolerance", "certificate.every", "certificate.heads"):
        if key in values.lines and key in values and kind == "none":
            report.add(
                values.lines[key], "R36", f"{key} has no meaning with certificate kind none", f"remove {key}, or set a kind"
            )


@_check("R32", "routing.summary", "sketch.bits")
def _summary_sketch_needs_sketches(summary: str, bits: int | None) -> Problems:
    if summary == "sketch" and bits is None:
        yield "routing.summary", "summary sketch without sketches", "set sketch.bits to 2, 4 or 8"


@_check("R33", "candidates.mass", "candidates.tokens", "candidates.share", "candidates.min_tokens")
def _mass_has_bounds(mass: float | None, tokens: int | None, share: str, least: int | None) -> Problems:
    if mass is None:
        return
    if tokens is None:
        yield "candidates.mass", "mass with tokens: all, which keeps every token", "set candidates.tokens to the most to keep"
    elif least is not None and least > tokens:
        yield "candidates.min_tokens", f"min_tokens {least} is over tokens {tokens}", f"set it to at most {tokens}"
    if share != "group":
        yield "candidates.mass", f"mass with share {share}: one list of a KV head's group reaches it", "set share to group"


@_check(
    "R34", "candidates.pages", "candidates.tokens", "candidates.share", "routing.pages", "routing.sink_pages",
    "routing.recent_pages",
)  # fmt: skip
def _kept_pages(kept: int | None, tokens: int | None, share: str, pages: int, sinks: int, recent: int) -> Problems:
    if kept is None:
        return
    if not sinks + recent <= kept <= pages:
        message = f"candidates.pages {kept} is not from {sinks + recent} (sink and recent pages) to {pages} (routing.pages)"
        yield "candidates.pages", message, f"set candidates.pages to at least {sinks + recent} and at most {pages}"
    if tokens is not None:
        yield "candidates.pages", f"pages beside tokens: {tokens}: one of them decides", "set candidates.tokens to all"
    if share != "group":
        yield "candidates.pages", f"pages with share {share}: a group's heads share pages", "set candidates.share to group"


@_check("R35", "certificate.kind", "sketch.bits", "routing.summary")
def _certificate_has_its_numbers(kind: str, bits: int | None, summary: str) -> Problems:
    if kind in ("rigorous", "calibrated") and bits is None:
        yield "certificate.kind", f"kind {kind} without sketches", "set sketch.bits to 4 or 8"
    if kind == "estimate" and summary == "sketch":
        yield "certificate.kind", "kind estimate with summary sketch", "set kind to calibrated or rigorous"


@_check("R37", "certificate.kind", "certificate.margin")
def _margin_of_calibrated(kind: str, margin: str | None) -> Problems:
    if kind == "calibrated" and margin is None:
        hint = "set certificate.margin to the file that `vashista-gen calibrate` writes"
        yield "certificate.kind", "kind calibrated without a margin", hint
    if kind != "calibrated" and margin is not None:
        yield "certificate.margin", f"margin with certificate kind {kind}", "remove it, or set kind to calibrated"


@_check("R38", "certificate.expand_pages", "fallback", "routing.pages")
def _expand_pages(most: int | None, fallback: str, pages: int) -> Problems:
    if most is None:
        return
    if fallback != "expand":
        yield "certificate.expand_pages", f"expand_pages with fallback {fallback}", "remove it, or set fallback to expand"
    elif most < 2 * pages:
        message = f"expand_pages {most} is under twice routing.pages {pages}"
        yield "certificate.expand_pages", message, f"set it to at least {2 * pages}"


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
