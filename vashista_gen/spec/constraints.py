"""The rules that tie several keys together. Each check runs when every key it needs has a valid value."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from vashista_gen.spec.fields import Values
from vashista_gen.spec.footprint import attention_tile, page_kernels, recent_super_pages, solver_bytes
from vashista_gen.spec.hardware import hardware_of
from vashista_gen.spec.model import Spec
from vashista_gen.spec.report import Report, listed
from vashista_gen.spec.setting import Setting, settings_of

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
    """Record a problem for each broken rule among R9 to R47 that concerns more than the value of one key."""
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
        siblings = settings_of(outer.kind) if outer.is_section else {}
        for key, setting in siblings.items():
            path, other = f"{section}.{key}", f"{section}.{setting.sibling}"
            if not setting.sibling or path not in values.lines or other not in values:
                continue
            if setting.applies(values[other]) or (path in values and values[path] is None):
                continue
            needed = _needed(setting, siblings[setting.sibling])
            beside = f"without {other}" if values[other] is None else f"with {setting.sibling}: {values[other]}"
            hint = f"remove {key}, or set {other} to {needed}"
            report.add(values.lines[path], setting.only_rule, f"{path} has no meaning {beside}", hint)


def _needed(setting: Setting, sibling: Setting) -> str:
    """The values of the sibling that `setting` has a meaning with."""
    if sibling.choices:
        return listed(choice for choice in sibling.choices if setting.applies(choice))
    return "a number"


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


@_check("R45", "routing.levels", "routing.summary", "certificate.kind")
def _levels_have_summaries(levels: int, summary: str, kind: str) -> Problems:
    if levels == 2 and summary == "sketch":
        message = "levels 2 with summary sketch: super-pages are summarised as pages are, and these are not"
        yield "routing.levels", message, "set routing.summary to another one, or levels to 1"
    if levels == 2 and kind == "estimate":
        message = "kind estimate adds up scores of all pages, and with levels 2 only those of the beam have one"
        yield "certificate.kind", message, "set certificate.kind to calibrated or rigorous, or routing.levels to 1"


@_check(
    "R45", "routing.levels", "routing.beam", "routing.super_pages", "routing.pages", "routing.sink_pages",
    "routing.recent_pages",
)  # fmt: skip
def _beam_holds_pages(
    levels: int, beam: int | None, super_pages: int | None, pages: int, sinks: int, recent: int
) -> Problems:
    if levels != 2 or beam is None or super_pages is None or sinks + recent > pages:
        return
    always = -(-sinks // super_pages) + recent_super_pages(recent, super_pages)
    least = max(2, -(-pages // super_pages) + 1, always)
    if beam < least:
        message = f"beam {beam} of super-pages of {super_pages} pages has no room for pages {pages} and those always kept"
        yield "routing.beam", message, f"set routing.beam to at least {least}"


@_check("R47", "routing.refresh", "cache.page_size")
def _one_new_page_at_most(refresh: int, page_size: int) -> Problems:
    if refresh > page_size:
        message = f"refresh {refresh} is over page_size {page_size}: several pages would begin between two choices"
        yield "routing.refresh", message, f"set routing.refresh to at most {page_size}"


@_check("R47", "routing.refresh", "certificate.kind")
def _refresh_without_page_scores(refresh: int, kind: str) -> Problems:
    if refresh > 1 and kind == "estimate":
        message = f"kind estimate adds up scores of all pages, which refresh {refresh} is to spare most steps"
        yield "certificate.kind", message, "set certificate.kind to calibrated or rigorous, or routing.refresh to 1"


@_check("R25", "candidates.tokens", "routing.pages", "cache.page_size")
def _candidates_fit(tokens: int | None, pages: int, page_size: int) -> Problems:
    if tokens is not None and tokens > pages * page_size:
        message = f"tokens {tokens} is over pages {pages} * page_size {page_size} = {pages * page_size}"
        yield "candidates.tokens", message, f"set candidates.tokens to at most {pages * page_size}, or to all"


@_check(
    "R25", "candidates.tokens", "routing.sink_pages", "routing.recent_pages", "routing.pages", "cache.page_size"
)
def _candidates_hold_what_is_always_kept(
    tokens: int | None, sinks: int, recent: int, pages: int, page_size: int
) -> Problems:
    kept = (sinks + recent) * page_size
    if tokens is not None and tokens < kept and sinks + recent <= pages:  # nothing fits else, which is R23's matter
        message = f"tokens {tokens} is under (sink_pages {sinks} + recent_pages {recent}) * page_size {page_size} = {kept}"
        hint = f"set candidates.tokens to at least {kept}, or lower sink_pages or recent_pages"
        yield "candidates.tokens", f"{message}, which are always kept", hint


@_check("R30", "candidates.dense_below", "candidates.tokens", "candidates.pages", "routing.pages", "cache.page_size")
def _dense_contexts_are_routed_whole(
    dense_below: int, tokens: int | None, kept_pages: int | None, pages: int, page_size: int
) -> Problems:
    routed = pages * page_size
    if dense_below and tokens is None and kept_pages is not None:
        message = f"dense_below {dense_below} beside candidates.pages {kept_pages}: contexts of as many pages keep all"
        yield "candidates.dense_below", message, "remove dense_below"
    elif dense_below and tokens is None:
        message = f"dense_below {dense_below} has no meaning with tokens: all, which drops no token of a routed page"
        yield "candidates.dense_below", message, "remove dense_below, or set candidates.tokens to a number"
    elif dense_below > routed:
        message = f"dense_below {dense_below} is over pages {pages} * page_size {page_size} = {routed}"
        yield "candidates.dense_below", message, f"set candidates.dense_below to at most {routed}"


@_check("R32", "routing.summary", "sketch.bits")
def _summary_sketch_needs_sketches(summary: str, bits: int | None) -> Problems:
    if summary == "sketch" and bits is None:
        message = "summary sketch scores pages by their tokens' sketches, and sketch.bits is null: there are none"
        yield "routing.summary", message, "set sketch.bits to 2, 4 or 8, or routing.summary to another one"


@_check("R33", "candidates.mass", "candidates.tokens", "candidates.pages")
def _mass_has_a_most(mass: float | None, tokens: int | None, pages: int | None) -> Problems:
    if mass is not None and tokens is None and pages is not None:
        message = f"mass {mass:g} beside candidates.pages {pages}: whole pages are kept, or tokens that reach a mass"
        yield (
            "candidates.mass",
            message,
            "remove mass, or candidates.pages and set candidates.tokens to the most to keep",
        )
    elif mass is not None and tokens is None:
        message = f"mass {mass:g} needs tokens, the most to keep: with tokens: all every one is kept"
        yield "candidates.mass", message, "set candidates.tokens to the most to keep, or remove mass"


@_check("R33", "candidates.mass", "candidates.share")
def _mass_of_a_group(mass: float | None, share: str) -> Problems:
    if mass is not None and share != "group":
        message = f"mass {mass:g} with share {share}: it is the mass of a KV head's group, which shares one list"
        yield "candidates.mass", message, "set candidates.share to group, or remove mass"


@_check("R33", "candidates.min_tokens", "candidates.tokens", "candidates.mass")
def _least_is_under_most(least: int | None, tokens: int | None, mass: float | None) -> Problems:
    if mass is not None and least is not None and tokens is not None and least > tokens:
        message = f"min_tokens {least} is over tokens {tokens}, the most to keep"
        yield "candidates.min_tokens", message, f"set candidates.min_tokens to at most {tokens}"


@_check("R34", "candidates.pages", "routing.pages", "routing.sink_pages", "routing.recent_pages")
def _kept_pages(kept: int | None, pages: int, sinks: int, recent: int) -> Problems:
    if kept is None or sinks + recent > pages:  # nothing fits then, which is R23's matter
        return
    if kept > pages:
        yield (
            "candidates.pages",
            f"candidates.pages {kept} is over routing.pages {pages}: kept pages are some of the routed ones",
            f"set candidates.pages to at most {pages}",
        )
    elif kept < sinks + recent:
        yield (
            "candidates.pages",
            f"candidates.pages {kept} is under sink_pages {sinks} + recent_pages {recent}, which are always kept",
            f"set candidates.pages to at least {sinks + recent}",
        )


@_check("R34", "candidates.pages", "candidates.tokens")
def _pages_or_tokens(kept: int | None, tokens: int | None) -> Problems:
    if kept is not None and tokens is not None:
        message = f"candidates.pages {kept} beside tokens {tokens}: whole pages are kept, or tokens"
        yield "candidates.pages", message, "remove candidates.pages or candidates.tokens"


@_check("R34", "candidates.pages", "candidates.share")
def _pages_of_a_group(kept: int | None, share: str) -> Problems:
    if kept is not None and share != "group":
        message = f"candidates.pages {kept} with share {share}: the heads of a group share their pages"
        yield "candidates.pages", message, "set candidates.share to group"


@_check("R35", "certificate.kind", "sketch.bits", "routing.summary")
def _certificate_has_its_numbers(kind: str, bits: int | None, summary: str) -> Problems:
    if kind in ("rigorous", "calibrated") and bits is None:
        bound = "bounds" if kind == "rigorous" else "estimates"
        message = f"kind {kind} {bound} omitted tokens by their sketches, and sketch.bits is null: there are none"
        yield "certificate.kind", message, f"set sketch.bits to {'8 or 4' if kind == 'rigorous' else '2, 4 or 8'}"
    if kind == "estimate" and summary == "sketch":
        message = "kind estimate adds up scores of page summaries, and with summary sketch there are none"
        yield "certificate.kind", message, "set certificate.kind to calibrated or rigorous"


@_check("R37", "certificate.kind", "certificate.margin")
def _margin_of_calibrated(kind: str, margin: str | None) -> Problems:
    if kind == "calibrated" and margin is None:
        hint = "set certificate.margin to the file that `vashista-gen calibrate` writes"
        yield "certificate.kind", "kind calibrated needs a margin: the coverage is the calibration's", hint


@_check("R38", "certificate.expand_pages", "fallback", "routing.pages")
def _expand_pages(most: int | None, fallback: str, pages: int) -> Problems:
    if most is not None and fallback != "expand":
        message = f"expand_pages {most} has no meaning with fallback {fallback}"
        yield "certificate.expand_pages", message, "remove expand_pages, or set fallback to expand"
    elif most is not None and most < 2 * pages:
        message = f"expand_pages {most} is under 2 * pages {pages}: the first retry doubles the pages"
        yield "certificate.expand_pages", message, f"set certificate.expand_pages to at least {2 * pages}"


@_check("R27", "fallback", "certificate.kind")
def _fallback_can_happen(fallback: str, kind: str) -> Problems:
    if kind == "none" and fallback != "capped":
        message = f"fallback {fallback} never happens: certificate kind {kind} cannot fail"
        yield "fallback", message, "set fallback to capped, or certificate.kind to one that can fail"


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


@_check(
    "R29", "targets", "cache.page_size", "model.head_dim", "model.dtype", "routing.summary", "routing.subpage"
)  # fmt: skip
def _pages_fit(
    targets: tuple[str, ...], page_size: int, head_dim: int, dtype: str, summary: str, subpage: int | None
) -> Problems:
    if subpage is not None and page_size % subpage:  # R19's matter
        return
    tiles = {target: attention_tile(page_size, head_dim, dtype, target) for target in targets if target != "c"}
    if not all(tile.fits for tile in tiles.values()):
        return
    tokens = min((tile.tokens for tile in tiles.values()), default=0)
    for target, tile in tiles.items():
        needs = page_kernels(summary, subpage, page_size, head_dim, dtype, tokens)
        kernel = max(needs, key=needs.__getitem__)
        if needs[kernel] > (tile.available_bytes or 0):
            of = f"subpage {subpage}" if subpage else f"summary {summary}"
            other = "routing.subpage to a larger one" if subpage else "routing.summary to subpage_mean"
            yield (
                f"targets[{target}]",
                f"{kernel} holds a page of {page_size} tokens whole ({of}, head_dim {head_dim}, {dtype}) and needs "
                f"{needs[kernel]} bytes of shared memory a block, {target} has {tile.available_bytes}",
                f"remove {target} from targets, or set {other}",
            )


@_check("R40", "attention.solver", "candidates.tokens")
def _solver_has_a_list(solver: str, tokens: int | None) -> Problems:
    if solver != "softmax" and tokens is None:
        message = f"solver {solver} reads its candidates once an iteration, and tokens: all has no list of them"
        yield "attention.solver", message, "set candidates.tokens to a number, such as 512"


@_check("R41", "attention.solver", "model.logits_soft_cap")
def _solver_has_no_soft_cap(solver: str, soft_cap: float | None) -> Problems:
    if solver != "softmax" and soft_cap is not None:
        message = f"logits_soft_cap {soft_cap:g} has no meaning with solver {solver}, which has no logits"
        yield "attention.solver", message, "set attention.solver to softmax, or remove model.logits_soft_cap"


@_check(
    "R42", "attention.solver", "attention.iterations", "targets", "cache.page_size", "model.num_q_heads",
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


@_check("R43", "attention.solver", "certificate.kind")
def _solver_has_no_certificate(solver: str, kind: str) -> Problems:
    if solver != "softmax" and kind != "none":
        message = f"kind {kind} states the softmax mass left out, and solver {solver} has none: it returns a gap"
        yield "certificate.kind", message, "set certificate.kind to none, or attention.solver to softmax"


@_check("R44", "attention.solver", "routing.dense_up_to")
def _solver_is_never_dense(solver: str, dense_up_to: int | None) -> Problems:
    if solver != "softmax" and dense_up_to is not None:
        message = f"dense_up_to {dense_up_to} with solver {solver}: softmax attention to all is another operator"
        yield "routing.dense_up_to", message, "remove dense_up_to, or set attention.solver to softmax"
