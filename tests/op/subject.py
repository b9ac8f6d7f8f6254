"""A generated package on one device, and the tensors of a decode step for it."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from assertions import Arithmetic
from strategies import Case

NAN = float("nan")
MOST_HEADS = 8  # KV heads of a sequence that are compared, about
CONSTANTS = ("center", "balance", "spread", "value_center", "margin")  # fields of summaries that are no page's
NO_PAGE = 2**30  # what the block table holds behind a sequence: no cache has such a page


@dataclass(frozen=True)
class Subject:
    """A package, the device its kernels run on, and the element type they are compiled for there."""

    package: ModuleType
    device: torch.device
    dtype: torch.dtype

    @property
    def spec(self) -> dict[str, Any]:
        return self.package.SPEC

    @property
    def kv_heads(self) -> int:
        return self.spec["model"]["num_kv_heads"]

    @property
    def group(self) -> int:
        return self.spec["model"]["num_q_heads"] // self.kv_heads

    @property
    def head_dim(self) -> int:
        return self.spec["model"]["head_dim"]

    @property
    def page_size(self) -> int:
        return self.spec["cache"]["page_size"]

    @property
    def routed_pages(self) -> int:
        return self.spec["routing"]["pages"]

    @property
    def tokens_kept(self) -> int | None:
        """K_c, the most where it follows a mass; None for all."""
        candidates = self.spec["candidates"]
        if candidates.get("pages") is not None:
            return candidates.get("pages") * self.page_size
        return None if candidates["tokens"] == "all" else candidates["tokens"]

    @property
    def least_tokens(self) -> int | None:
        """The fewest tokens that are kept where there are as many; None for all."""
        by_mass = self.spec["candidates"].get("mass") is not None
        return self.part("constants").MIN_TOKENS if by_mass else self.tokens_kept

    @property
    def sketched(self) -> bool:
        """Whether tokens have sketches."""
        return self.spec["sketch"]["bits"] is not None

    @property
    def certificate(self) -> str:
        """Kind of the certificate: none, estimate, calibrated or rigorous."""
        return self.spec["certificate"]["kind"]

    @property
    def lists_tokens(self) -> bool:
        """Whether a step attends to a list of tokens, not to whole pages."""
        return self.tokens_kept is not None or self.certificate != "none"

    @property
    def retries(self) -> bool:
        """Whether rows whose certificate fails are computed again."""
        return self.spec["fallback"] != "capped"

    def part(self, name: str) -> ModuleType:
        """A module of the package."""
        return importlib.import_module(f"{self.package.__name__}.{name}")

    def audited(self, length: int, h: int) -> bool:
        """Whether a step at this length certifies KV head h."""
        rule = self.spec["certificate"]
        return length % rule["every"] == 0 and (length // rule["every"] + h) % rule["heads"] == 0

    def calibration(self, draw: torch.Generator) -> Any:
        """What one layer's calibration may hold: centres, balances of 1/4 to 4, spreads of 1/4 to 5/4, a margin."""
        normal = lambda: torch.randn(self.kv_heads, self.head_dim, generator=draw)
        balance = 4 ** (2 * torch.rand(self.kv_heads, self.head_dim // 2, generator=draw) - 1)
        given = SimpleNamespace(center=normal(), balance=balance, value_center=normal(), margin=0.25)
        given.spread = 0.25 + torch.rand(self.kv_heads, self.head_dim, generator=draw)
        return given

    @property
    def exact(self) -> bool:
        """Whether a row's result does not depend on how many rows a call has, bit for bit."""
        return self.device.type == "cpu"

    def attends_to_all(self, length: int) -> bool:
        """Whether `decode` keeps every token of a sequence of that length."""
        within = length <= self.routed_pages * self.page_size
        kept = self.least_tokens
        return within and (kept is None or length <= max(kept, self.spec["candidates"].get("dense_below", 0)))

    def lengths(self, case: Case) -> list[int]:
        """Sequence lengths of a case, cut where the whole batch would hold too much to compute quickly."""
        routed = self.routed_pages * self.page_size
        room = max(routed + routed // 4, 600_000 // (self.kv_heads * self.head_dim))
        result = []
        for length in case.lengths:
            result.append(min(length.of(self.page_size, self.routed_pages), room))
            room -= result[-1]
        return result


@dataclass
class Step:
    """The arguments of one decode step, and what they hold: keys[b], values[b] float64 [n, kv heads, d] on the CPU."""

    subject: Subject
    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    lengths: list[int]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    first_head: int = 0
    calibration: Any = None

    @property
    def compared(self) -> range:
        """KV heads to compare: all, or every n-th of many."""
        stride = max(1, self.subject.kv_heads // MOST_HEADS)
        return range(self.first_head % stride, self.subject.kv_heads, stride)

    @property
    def rows(self):
        """(b, h, q float64 [group, d], keys [n, d], values [n, d]) of each sequence and compared KV head."""
        s = self.subject
        queries = self.q.cpu().double().view(-1, s.kv_heads, s.group, s.head_dim)
        for b in range(len(self.lengths)):
            for h in self.compared:
                yield b, h, queries[b, h], self.keys[b][:, h], self.values[b][:, h]

    def heads(self, h: int) -> slice:
        """The query heads of KV head h."""
        return slice(h * self.subject.group, (h + 1) * self.subject.group)

    def summarize(self) -> Any:
        """Summaries of the pages in use; of other pages, of tokens behind a sequence, of broken super-pages they hold junk."""
        calibration, given = self.calibration, {"v_cache": self.v_cache}
        if calibration is None and self.subject.certificate == "calibrated":
            calibration = self.subject.package.calibration(0, self.subject.device)
        tensors = (self.k_cache, self.block_table, self.seq_lens)
        summaries = self.subject.package.summarize_pages(*tensors, calibration=calibration, **given)
        live = self.live()
        for name, x in zip(type(summaries)._fields, summaries, strict=True):
            if name in CONSTANTS:
                continue
            unused = ~live.any(1)
            if name.startswith("super_"):
                unused = ~self.last_of_supers()
            if name in by_token(self.subject):
                unused = (~live)[:, None].expand(x.shape[:3])
            x[unused.to(x.device)] = NAN if x.is_floating_point() else 77
        return summaries

    def live(self) -> torch.Tensor:
        """bool [num_pages, page_size]: where the tokens of the sequences lie, on the CPU."""
        size = self.subject.page_size
        live = torch.zeros(self.k_cache.shape[0], size, dtype=torch.bool)
        for row, n in zip(self.pages(), self.lengths, strict=True):
            for p, page in enumerate(row):
                live[page, : n - p * size] = True
        return live

    def last_of_supers(self) -> torch.Tensor:
        """bool [num_pages]: the last pages of whole super-pages, where their summaries lie."""
        size, last = self.subject.spec["routing"]["super_pages"], torch.zeros(self.k_cache.shape[0], dtype=torch.bool)
        for row, n in zip(self.pages(), self.lengths, strict=True):
            last[row[size - 1 : n // self.subject.page_size // size * size : size]] = True
        return last

    def pages(self) -> list[list[int]]:
        """Physical pages of each sequence, in order."""
        size = self.subject.page_size
        return [row[: -(-n // size)] for row, n in zip(self.block_table.tolist(), self.lengths, strict=True)]

    def decode(self, summaries: Any = None, **changed: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """`decode` into NaN-poisoned outputs; `changed` replaces arguments by name.

        Without summaries, which given pages make needless, packages that need them anyway get their own.
        """
        if summaries is None and (self.subject.sketched or self.subject.certificate != "none"):
            summaries = self.summarize()
        call = {**self._arguments(), "summaries": summaries, "selected_pages": None, **changed}
        return self._into_poison(self.subject.package.decode, call)

    def decode_dense(self, **changed: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """`decode_dense` into NaN-poisoned outputs."""
        return self._into_poison(self.subject.package.decode_dense, {**self._arguments(), **changed})

    def certify(self, summaries: Any, **changed: Any) -> tuple[torch.Tensor, ...]:
        """`decode`, with the certificate's tensors behind out and lse where the package has certificates."""
        if self.subject.certificate == "none":
            return self.decode(summaries, **changed)
        out, lse, certificate = self.decode(summaries, return_certificate=True, **changed)
        return out, lse, *certificate

    def select_pages(self, summaries: Any, **given: Any) -> torch.Tensor:
        """The package's own choice of pages."""
        return self.subject.package.select_pages(self.q, summaries, self.block_table, self.seq_lens, **given)

    def _arguments(self) -> dict[str, Any]:
        names = ("q", "k_cache", "v_cache", "block_table", "seq_lens")
        return {name: getattr(self, name) for name in names}

    @staticmethod
    def _into_poison(function, call):
        out = torch.full_like(call["q"], NAN)
        lse = torch.full(call["q"].shape[:2], NAN, device=out.device)
        returned = function(**call, out=out, lse=lse)
        assert returned[0] is out and returned[1] is lse
        return returned


def arithmetic_of(subject: Subject) -> Arithmetic:
    """The roundings of a subject's kernels."""
    return Arithmetic.of(subject.device, subject.dtype)


def wide(summaries: Any) -> Any:
    """Summaries with their floating-point parts in float64, on the CPU."""
    parts = (x.cpu() for x in summaries)
    return type(summaries)(*(x.double() if x.is_floating_point() else x for x in parts))


def by_token(subject: Subject) -> tuple[str, ...]:
    """Names of the fields that hold something of every token of a page."""
    of_token = subject.spec["sketch"].get("transform") == "hadamard"
    return ("sketch_codes", "sketch_residuals", *(("sketch_scales",) if of_token else ()))


def make_step(subject: Subject, case: Case) -> Step:
    """The tensors of a case: pages in random order; NaN in pages no sequence uses and behind the last tokens."""
    lengths = subject.lengths(case)
    draw = torch.Generator().manual_seed(case.seed)
    q, keys, values = _tensors(subject, case.family, lengths, draw, case.seed)
    q = q.to(subject.dtype)
    keys, values = ([x.to(subject.dtype) for x in tensors] for tensors in (keys, values))
    needed = [-(-n // subject.page_size) for n in lengths]
    order = torch.randperm(sum(needed) + 3, generator=draw)
    width = max([1, *needed]) + (0, 1, 3 * subject.routed_pages)[case.seed % 3]  # a table may be wider than is needed
    block_table = torch.full((len(lengths), width), NO_PAGE, dtype=torch.int32)
    k_cache, v_cache = (empty_cache(subject, len(order)) for _ in "kv")
    taken = 0
    for b, n in enumerate(needed):
        block_table[b, :n] = order[taken : taken + n]
        taken += n
        write_tokens(subject, k_cache, block_table[b], 0, keys[b])
        write_tokens(subject, v_cache, block_table[b], 0, values[b])
    place = lambda x: x.to(subject.device)
    return Step(
        subject, place(q), place(k_cache), place(v_cache), place(block_table),
        place(torch.tensor(lengths, dtype=torch.int32)), lengths,
        [k.double() for k in keys], [v.double() for v in values], case.seed,
    )  # fmt: skip


def empty_cache(subject: Subject, pages: int) -> torch.Tensor:
    """A cache full of NaN, on the CPU."""
    inner = (subject.page_size, subject.kv_heads)
    inner = inner if subject.spec["cache"]["layout"] == "NHD" else inner[::-1]
    return torch.full((pages, *inner, subject.head_dim), NAN, dtype=subject.dtype)


def write_tokens(subject: Subject, cache: torch.Tensor, table: torch.Tensor, first: int, tokens: torch.Tensor) -> None:
    """Writes tokens [n, kv heads, d] of one sequence from position `first` on; `table`: its row of the block table."""
    positions = torch.arange(first, first + len(tokens))
    pages, offsets = table[positions // subject.page_size].long(), positions % subject.page_size
    if subject.spec["cache"]["layout"] == "NHD":
        cache[pages, offsets] = tokens
    else:
        cache[pages, :, offsets] = tokens


def _tensors(subject, family, lengths, draw, seed):
    """(q [batch, heads, d], keys[b], values[b] [n, kv heads, d]) in float32."""
    normal = lambda *shape: torch.randn(*shape, generator=draw)
    heads, d = subject.kv_heads, subject.head_dim
    q = normal(len(lengths), heads * subject.group, d)
    keys, values = [normal(n, heads, d) for n in lengths], [normal(n, heads, d) for n in lengths]
    if family == "peaked":
        q *= 8
    elif family == "near_tie":
        keys = [normal(1, heads, d) * (1 + 2**-23 * torch.randint(-2, 3, k.shape, generator=draw)) for k in keys]
    elif family == "one_hot":
        keys = [8 * torch.eye(d)[torch.arange(len(k)) % d, None, :].expand(k.shape) for k in keys]
    elif family == "duplicates":
        keys = [normal(3, heads, d)[torch.randint(0, 3, (len(k),), generator=draw)] for k in keys]
    elif family == "huge":
        most = 2 if subject.dtype == torch.float16 else 15
        grow = lambda x: x * 10 ** (most * torch.rand(len(x), 1, 1, generator=draw))
        q, keys, values = grow(q), [grow(k) for k in keys], [grow(v) for v in values]
    elif family in ("tiny", "spread"):
        low, high = (-25, -24) if family == "tiny" else (-25, 15)
        if subject.dtype == torch.float16:
            low, high = (-8, -4) if family == "tiny" else (-5, 2)  # some vanish, others lose most of their bits
        grow = lambda x: x * 10 ** (low + (high - low) * torch.rand(len(x), 1, 1, generator=draw))
        keys, values = [grow(k) for k in keys], [grow(v) for v in values]
        if family == "tiny":
            q = (q * 10.0**-low).clamp(-6e4, 6e4) if subject.dtype == torch.float16 else q / 10**low
    elif family == "zero_keys":
        keys, q = [torch.zeros_like(k) for k in keys], q * 1e4
    elif family == "orthogonal":
        distinct = 1000 * torch.where(normal(1 + 2 * (seed % 2), heads, d) > 0, 1.0, -1.0)
        keys = [distinct[torch.randint(0, len(distinct), (len(k),), generator=draw)] for k in keys]
        if seed % 4 == 2:  # the last tokens, always kept, are long: their logits are off, those of the others are not
            for k in keys:
                k[:-16] *= 1e-9
        basis = torch.linalg.qr(distinct.double().permute(1, 2, 0)).Q  # [heads, d, distinct]
        grouped = q.double().view(len(lengths), heads, -1, d)
        q = (grouped - torch.einsum("bhgd,hdi,hei->bhge", grouped, basis, basis)).view(q.shape) * 1e4 / d**0.5
        q = q.float()
    elif family == "common_value":
        offset = 1e3 if subject.dtype == torch.float16 else 1e6
        common = offset * normal(1, heads, d)
        values = [common + v for v in values]
    elif family == "one_key":
        # one key in the direction of all the group's queries, alone on its page of keys against them
        q = (16 * d**0.5 * torch.eye(d)[0]).expand(q.shape).clone()
        for k in keys:
            k *= 0.1
            k[len(k) - 1 :, :, 0] += 16
    elif family == "constant":
        keys = [normal(1, heads, d).expand(k.shape) for k in keys]
    elif family == "zero_query":
        q.zero_()
    elif family == "outliers":
        keys = [k * torch.where(torch.arange(d) < 2, 50.0, 1.0) for k in keys]
    elif family in ("lse_zero", "lse_low"):
        unit = torch.eye(d)[0]
        scale = subject.spec["model"]["sm_scale"] / subject.spec["attention"]["epsilon"]
        level = lambda n: -math.log(max(n, 1)) if family == "lse_zero" else -1e4
        q = 16 * unit.expand(q.shape)
        keys = [(level(len(k)) / (16 * scale) * unit).expand(k.shape) for k in keys]
    return q, keys, values
