"""The frozen dataclasses of a spec; each field says what it allows (see setting.py).

The loader alone makes them: every value in a `Spec` has been checked, defaults are filled in, `sm_scale` is a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vashista_gen.spec.setting import Setting, setting, settings_of

FILE = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.json"  # a file of the spec's own folder
DTYPES = ("bfloat16", "float16", "float32")
TARGETS = (
    "c",
    "cuda-sm_80",
    "cuda-sm_86",
    "cuda-sm_89",
    "cuda-sm_90",
    "cuda-sm_90a",
    "cuda-sm_100a",
    "cuda-sm_120",
)


@dataclass(frozen=True)
class ModelSpec:
    """The attention layer of the model: logits s_j = sm_scale <q, k_j>, then soft-capped if a cap is given."""

    num_q_heads: int = setting(int, "Query heads of one attention layer.", low=1, high=1024)
    num_kv_heads: int = setting(
        int, "Key and value heads; each serves num_q_heads / num_kv_heads query heads.", low=1, high=1024
    )
    head_dim: int = setting(
        int,
        "Elements of one head's query, key and value.",
        low=16,
        high=512,
        step=16,
        bound_rule="R13",
        bound_why="tensor cores multiply in steps of 16",
    )
    dtype: str = setting(str, "Element type of queries and output.", default="bfloat16", choices=DTYPES)
    sm_scale: float = setting(
        float,
        "Factor on the logits; `default` is 1/sqrt(head_dim).",
        default="default",
        word="default",
        above=0,
        bound_rule="R14",
    )
    logits_soft_cap: float | None = setting(
        float,
        "Cap c of s -> c tanh(s / c) on the logits; null for none.",
        default=None,
        word="null",
        above=0,
        bound_rule="R15",
    )


@dataclass(frozen=True)
class CacheSpec:
    """The paged KV cache.

    NHD [num_pages, page_size, num_kv_heads, head_dim] or HND [num_pages, num_kv_heads, page_size, head_dim].
    """

    page_size: int = setting(
        int,
        "Tokens of one page.",
        choices=(16, 32, 64, 128),
        bound_rule="R16",
        bound_why="the engines' page sizes; a tile is whole pages, or a half or quarter of one",
    )
    layout: str = setting(str, "Order of the cache's axes.", default="NHD", choices=("NHD", "HND"))
    kv_dtype: str = setting(
        str, "Element type of keys and values; model.dtype if not given.", default_key="model.dtype", choices=DTYPES
    )


@dataclass(frozen=True)
class RoutingSpec:
    """How pages are summarised and chosen: `pages` of them for each sequence and KV head."""

    pages: int = setting(int, "Pages P kept for each sequence and KV head.", low=1, high=4096, bound_rule="R21")
    summary: str = setting(
        str,
        "What a page is scored by: mean of its keys, means of groups of `subpage` tokens, per-channel min and max, "
        "or its tokens' sketches.",
        default="subpage_mean",
        choices=("mean", "subpage_mean", "box", "sketch"),
    )
    subpage: int | None = setting(
        int,
        "Tokens of one group of summary subpage_mean.",
        default=4,
        low=2,
        high=128,
        only_with=("summary", "subpage_mean"),
        bound_rule="R19",
        bound_why="and divide page_size",
        only_rule="R18",
    )
    summary_bits: int | None = setting(
        int,
        "Bits of one summary element; 16 is a float, 8 and 4 are integer codes.",
        default=4,
        choices=(16, 8, 4),
        unless=("summary", "sketch"),
        only_rule="R32",
    )
    box_weight: float | None = setting(
        float,
        "Weight w of the page score sum(q * mid) + w * sum(abs(q) * half_range); with 1 it bounds q.k from above.",
        default=1.0,
        low=0,
        only_with=("summary", "box"),
        only_rule="R20",
    )
    sink_pages: int = setting(int, "First pages of a sequence, always kept.", default=1, low=0, high=4096)
    recent_pages: int = setting(
        int,
        "Last pages of a sequence, always kept; the last one is being written.",
        default=2,
        low=1,
        high=4096,
        bound_rule="R22",
        bound_why="the page being written is always read",
    )
    group_reduce: str = setting(
        str,
        "How the query heads of a KV head agree on one list of pages.",
        default="softmax_sum",
        choices=("softmax_sum", "max"),
    )
    dense_up_to: int | None = setting(
        int,
        "Steps of which the host knows that no sequence has more tokens attend to all; null for what `tune` measured.",
        default=None,
        word="null",
        low=0,
        high=2**31 - 1,
    )
    refresh: int = setting(
        int,
        "Choose pages in one of this many steps; the steps between keep them, and take in the pages begun since.",
        default=1,
        low=1,
        high=128,
        bound_rule="R47",
        bound_why="and at most page_size",
    )
    levels: int = setting(
        int,
        "Levels of the page index: 1 scores every page; 2 scores super-pages first, then the pages of the best of them.",
        default=1,
        choices=(1, 2),
        bound_rule="R24",
        bound_why="pages, or super-pages of pages",
    )
    super_pages: int | None = setting(
        int,
        "Pages of one super-page.",
        default=16,
        choices=(4, 8, 16, 32),
        only_with=("levels", 2),
        bound_rule="R24",
        bound_why="a sum over its tokens must stay short",
        only_rule="R24",
    )
    beam: int | None = setting(
        int,
        "Super-pages whose pages are scored, for each sequence and KV head.",
        default=64,
        low=2,
        high=4096,
        only_with=("levels", 2),
        only_rule="R24",
    )


@dataclass(frozen=True)
class SketchSpec:
    """Quantised keys of every token beside the cache; `bits` is None for none."""

    bits: int | None = setting(
        int,
        "Bits of one channel of a key's sketch; null keeps no sketches.",
        default=None,
        word="null",
        choices=(2, 4, 8),
    )
    transform: str | None = setting(
        str,
        "How a key is coded: a scale for each page and channel, or one for each token after a Hadamard rotation.",
        default="page_channel",
        choices=("page_channel", "hadamard"),
        unless=("bits", None),
        only_rule="R31",
    )
    balance: str | None = setting(
        str,
        "Calibration file beside the spec whose scales, one for each RoPE pair, keys are multiplied by; null for none.",
        default=None,
        word="null",
        pattern=FILE,
        unless=("bits", None),
        only_rule="R31",
        bound_rule="R37",
        bound_why="the name of a file that `vashista-gen calibrate` wrote beside the spec",
    )


@dataclass(frozen=True)
class CandidatesSpec:
    """Which tokens of the routed pages are attended to; `tokens` is None for all of them."""

    tokens: int | None = setting(
        int,
        "Tokens K_c kept inside the routed pages, the most when there is a mass; `all` keeps every one.",
        default="all",
        word="all",
        low=1,
        high=4096 * 128,
    )
    share: str = setting(
        str,
        "Whether a KV head's group shares one list of tokens or each query head has its own.",
        default="group",
        choices=("group", "head"),
    )
    dense_below: int = setting(
        int,
        "Contexts of up to this many tokens keep every token, whatever `tokens` says; 0 for none.",
        default=0,
        low=0,
        high=4096 * 128,
    )
    mass: float | None = setting(
        float,
        "Keep the fewest tokens whose share of the routed tokens' softmax mass reaches this; "
        "null for K_c tokens always.",
        default=None,
        word="null",
        above=0,
        high=1,
        bound_rule="R33",
    )
    min_tokens: int | None = setting(
        int,
        "The fewest tokens that `mass` keeps; null for as many as are always kept.",
        default=None,
        word="null",
        low=1,
        high=4096 * 128,
        unless=("mass", None),
        only_rule="R33",
    )
    pages: int | None = setting(
        int,
        "Keep the whole of this many of the routed pages, the best by their tokens' scores; null for tokens.",
        default=None,
        word="null",
        low=1,
        high=4096,
    )


@dataclass(frozen=True)
class AttentionSpec:
    """The weights of the candidates: p = softmax(s / epsilon), or a projection of sm_scale q on the keys' hull.

    entropic_projection  min over the simplex of 1/2 ||sum a_j k_j - sm_scale q||^2 + epsilon sum a_j log a_j
    frank_wolfe          the same without the last term; epsilon then only tempers the choice of candidates
    """

    solver: str = setting(
        str,
        "How the weights are computed.",
        default="softmax",
        choices=("softmax", "entropic_projection", "frank_wolfe"),
    )
    iterations: int | None = setting(
        int,
        "Iterations of a projection's solver, each one pass over the candidates.",
        default=32,
        low=1,
        high=256,
        unless=("solver", "softmax"),
        only_rule="R39",
    )
    epsilon: float = setting(
        float,
        "Temperature: weights are softmax(s / epsilon); 1 is ordinary attention.",
        default=1.0,
        above=0,
        bound_rule="R26",
    )


@dataclass(frozen=True)
class CertificateSpec:
    """What a decoded step can prove about the tokens it left out."""

    kind: str = setting(
        str,
        "How the omitted mass is stated: not, estimated from page scores, estimated from sketches with a calibrated "
        "margin, or bounded by sketches.",
        default="none",
        choices=("none", "estimate", "calibrated", "rigorous"),
    )
    tolerance: float | None = setting(
        float,
        "A row is certified when its leakage is at most this.",
        default=0.1,
        above=0,
        high=1,
        bound_rule="R36",
        unless=("kind", "none"),
        only_rule="R36",
    )
    every: int | None = setting(
        int,
        "Audit the steps whose context is a multiple of this many tokens.",
        default=1,
        low=1,
        high=1 << 20,
        unless=("kind", "none"),
        only_rule="R36",
    )
    heads: int | None = setting(
        int,
        "Audit one of this many KV heads a step, in turn.",
        default=1,
        low=1,
        high=1024,
        unless=("kind", "none"),
        only_rule="R36",
    )
    margin: str | None = setting(
        str,
        "Calibration file beside the spec that holds the margin of kind calibrated.",
        default=None,
        word="null",
        pattern=FILE,
        only_with=("kind", "calibrated"),
        only_rule="R37",
        bound_rule="R37",
        bound_why="the name of a file that `vashista-gen calibrate` wrote beside the spec",
    )
    expand_pages: int | None = setting(
        int,
        "The most pages that fallback expand tries before it attends to all; null for four times routing.pages.",
        default=None,
        word="null",
        low=1,
        high=1 << 16,
    )


@dataclass(frozen=True)
class Source:
    """Where a spec was read: file as shown in messages, hash of its text, line of each key ("routing.pages")."""

    file: str
    text_sha256: str
    lines: Mapping[str, int]

    def line(self, key: str) -> int:
        """Line of `key`, of its section when only that was given, else 1."""
        return self.lines.get(key, self.lines.get(key.split(".")[0], 1))


@dataclass(frozen=True)
class Spec:
    """One model shape and how its decoding is made sparse. Equality and hash ignore `source`."""

    name: str = setting(
        str,
        "Name of the generated package; the file is `<name>.yaml`.",
        pattern="[a-z][a-z0-9_]{0,63}",
        bound_rule="R9",
        bound_why="it becomes a Python package: lower-case letters, digits and underscores, a letter first, at most 64",
    )
    model: ModelSpec = setting(ModelSpec, "The attention layer.")
    cache: CacheSpec = setting(CacheSpec, "The paged KV cache.")
    routing: RoutingSpec = setting(RoutingSpec, "Choice of pages.")
    sketch: SketchSpec = setting(SketchSpec, "Quantised keys of single tokens.", default={})
    candidates: CandidatesSpec = setting(CandidatesSpec, "Choice of tokens inside the pages.", default={})
    attention: AttentionSpec = setting(AttentionSpec, "Weights of the candidates.", default={})
    certificate: CertificateSpec = setting(CertificateSpec, "What a step proves about the rest.", default={})
    fallback: str = setting(
        str,
        "What a step does when its certificate fails: attend to all, route again to more pages, or keep the result.",
        default="capped",
        choices=("dense", "expand", "capped"),
    )
    targets: tuple[str, ...] = setting(
        list,
        "What the kernels are compiled for: `c`, or cuda with an architecture.",
        default=("cuda-sm_90a", "c"),
        choices=TARGETS,
        bound_rule="R28",
    )
    source: Source = field(compare=False, repr=False)
    calibration: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    tuning: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    kernels: Mapping[str, Mapping[str, int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def group_size(self) -> int:
        """Query heads of one KV head."""
        return self.model.num_q_heads // self.model.num_kv_heads

    def kernels_target(self, kind: str) -> str | None:
        """The target whose tuned constants kernels of a kind, "c" or "cuda", have: the first of `targets` with some."""
        return next((one for one in self.targets if one.split("-")[0] == kind and one in self.kernels), None)

    def tuned_kernels(self, kind: str) -> Mapping[str, int]:
        """The tuned constants of the C kernels or of the GPU ones, {name: value}; the others have their defaults."""
        return self.kernels.get(self.kernels_target(kind) or "", {})

    def always_routed(self) -> Spec:
        """The spec of a package that routes every step that can drop a token, whatever is faster: to judge routing."""
        return replace(self, routing=replace(self.routing, dense_up_to=None), tuning={})

    def to_dict(self) -> dict[str, Any]:
        """The resolved spec as a plain dict that loads back to an equal one.

        `sm_scale` is a number, `candidates.tokens` is "all" when every token is kept, a key that has no meaning beside
        the others is left out, `source` is not in it.
        """
        return _plain(self)


def _applies(section: Any, allowed: Setting) -> bool:
    """Whether a key has a meaning beside the others of its section."""
    return not allowed.sibling or allowed.applies(getattr(section, allowed.sibling))


def _plain(section: Any) -> dict[str, Any]:
    """Keys and values of a section, sections inside it included."""
    plain: dict[str, Any] = {}
    for key, allowed in settings_of(type(section)).items():
        value = getattr(section, key)
        if allowed.is_section:
            plain[key] = _plain(value)
        elif isinstance(value, tuple):
            plain[key] = list(value)
        elif value is not None or (allowed.word == "null" and _applies(section, allowed)):
            plain[key] = value
        elif allowed.word not in ("", "null"):
            plain[key] = allowed.word
    return plain
