"""The numbered rules of a spec, cited by code, messages and tests; specs/README.md has them with examples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One rule: its number, the part of the spec it belongs to, and its sentence."""

    number: str
    group: str
    sentence: str


_SENTENCES = {
    "The file": (
        "A spec is one YAML document in UTF-8, at most 256 KiB, and a mapping at its top level.",
        "Every value stands where it is read: no anchors, aliases or tags.",
        "Every key is one that its section knows.",
        "A key is given once.",
        "A key without a default is given: name, num_q_heads, num_kv_heads, head_dim, page_size and pages.",
        "A value has the type of its key: whole numbers in plain decimal digits, words that YAML reads as words.",
        "A number is within the bounds of its key, and one with a fraction is a finite, normal float32 or 0.",
        "A word or number from a list of choices is one of them.",
    ),
    "Name": (
        "The name is a lower-case Python identifier, starts with a letter, is no keyword, at most 64 characters long.",
        "The name is that of the file without its ending.",
    ),
    "Model": (
        "num_q_heads is a multiple of num_kv_heads.",
        "The group size num_q_heads / num_kv_heads is at most 16, the rows of one tensor-core tile.",
        "head_dim is a multiple of 16 from 16 to 512.",
        "sm_scale is greater than 0, or `default` for 1/sqrt(head_dim).",
        "logits_soft_cap is greater than 0, or null for none.",
    ),
    "Cache": (
        "page_size is 16, 32, 64 or 128: the engines' page sizes; a tile is whole pages, or a half or quarter of one.",
        "kv_dtype equals model.dtype: mixed types are not compiled.",
    ),
    "Routing": (
        "subpage is given only with summary subpage_mean.",
        "subpage is at least 2 and divides page_size.",
        "box_weight is given only with summary box.",
        "pages is from 1 to 4096.",
        "recent_pages is at least 1: the page being written is always read.",
        "sink_pages + recent_pages is at most pages.",
        "levels is 1 or 2; super_pages, which is 4, 8, 16 or 32, and beam are given only with 2.",
    ),
    "Candidates, attention, fallback": (
        "candidates.tokens is at most pages * page_size, the tokens of the routed pages, and at least "
        "(sink_pages + recent_pages) * page_size, those always kept.",
        "epsilon is greater than 0.",
        "A fallback other than capped needs a certificate that can fail: with kind none there is only capped.",
    ),
    "Targets": (
        "targets names at least one target and none twice.",
        "An attention tile of 32 tokens, and the summary or sketches of one page, fit the shared memory "
        "of every cuda target.",
    ),
    "Short contexts": (
        "candidates.dense_below needs a number of tokens and is at most pages * page_size: "
        "a context that short is routed whole.",
    ),
    "Sketches": (
        "sketch.transform and sketch.balance are given only with sketch.bits.",
        "routing.summary sketch needs sketch.bits and has no summary_bits.",
    ),
    "Budgets": (
        "candidates.mass is above 0 and at most 1, needs a number of tokens (the most) and share group; "
        "min_tokens is given only with it and is at most tokens.",
        "candidates.pages is at most routing.pages and at least sink_pages + recent_pages, with tokens: all "
        "and share group.",
    ),
    "Certificates": (
        "Certificate kinds rigorous and calibrated need sketch.bits; kind estimate needs a page summary "
        "other than sketch.",
        "certificate.tolerance is above 0 and at most 1; tolerance, every and heads are given only with a certificate.",
        "A calibration file is a JSON file beside the spec, holds what is read from it in the spec's shapes, "
        "and certificate.margin is given with kind calibrated and only then.",
        "certificate.expand_pages is given only with fallback expand and is at least twice routing.pages.",
    ),
    "Solvers": (
        "attention.iterations is given only with solver entropic_projection or frank_wolfe.",
        "A solver other than softmax needs a number of candidates.tokens: it reads its candidates once an iteration.",
        "A solver other than softmax has no logits to cap: logits_soft_cap is null.",
        "The state of a solver other than softmax fits the shared memory of every cuda target.",
        "A solver other than softmax has certificate.kind none: its gap takes the certificate's place.",
    ),
    "Break-even": (
        "routing.dense_up_to is given only with solver softmax: attention to all takes a routed step's place.",
    ),
    "Two levels": (
        "levels 2 needs summaries of pages, a beam of super-pages that holds pages and those always kept, and a certificate "
        "that is none, calibrated or rigorous.",
    ),
    "Tuning": (
        "A tuning file is a JSON file as `tune` writes it: knobs of devices in their bounds, and for targets of the spec "
        "constants of kernels, each one of the values that its shape allows.",
    ),
    "Refresh": (
        "routing.refresh is from 1 to page_size: a sequence that grows by a token a step begins at most one page between two "
        "choices; over 1, certificate.kind is none, calibrated or rigorous.",
    ),
}

RULES: dict[str, Rule] = {}
for _group, _sentences in _SENTENCES.items():
    for _sentence in _sentences:
        _number = f"R{len(RULES) + 1}"
        RULES[_number] = Rule(_number, _group, _sentence)
