"""A generated package on one device, and the tensors of a decode step for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from strategies import Case

NAN = float("nan")
MOST_HEADS = 8  # KV heads of a sequence that are compared, about
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
        """K_c, None for all."""
        tokens = self.spec["candidates"]["tokens"]
        return None if tokens == "all" else tokens

    @property
    def exact(self) -> bool:
        """Whether a row's result does not depend on how many rows a call has, bit for bit."""
        return self.device.type == "cpu"

    def attends_to_all(self, length: int) -> bool:
        """Whether `decode` keeps every token of a sequence of that length."""
        within = length <= self.routed_pages * self.page_size
        kept = self.tokens_kept
        return within and (kept is None or length <= max(kept, self.spec["candidates"]["dense_below"]))

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
        """Summaries of the pages in use; floating-point ones of the other pages hold NaN."""
        summaries = self.subject.package.summarize_pages(self.k_cache, self.block_table, self.seq_lens)
        used = torch.zeros(self.k_cache.shape[0], dtype=torch.bool)
        used[[p for b, row in enumerate(self.pages()) for p in row]] = True
        for x in summaries:
            if x.is_floating_point():
                x[~used.to(x.device)] = NAN
        return summaries

    def pages(self) -> list[list[int]]:
        """Physical pages of each sequence, in order."""
        size = self.subject.page_size
        return [row[: -(-n // size)] for row, n in zip(self.block_table.tolist(), self.lengths, strict=True)]

    def decode(self, summaries: Any = None, **changed: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """`decode` into NaN-poisoned outputs; `changed` replaces arguments by name."""
        call = {**self._arguments(), "summaries": summaries, "selected_pages": None, **changed}
        return self._into_poison(self.subject.package.decode, call)

    def decode_dense(self, **changed: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """`decode_dense` into NaN-poisoned outputs."""
        return self._into_poison(self.subject.package.decode_dense, {**self._arguments(), **changed})

    def select_pages(self, summaries: Any) -> torch.Tensor:
        """The package's own choice of pages."""
        return self.subject.package.select_pages(self.q, summaries, self.block_table, self.seq_lens)

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


def make_step(subject: Subject, case: Case) -> Step:
    """The tensors of a case: pages in random order; NaN in pages no sequence uses and behind the last tokens."""
    lengths = subject.lengths(case)
    draw = torch.Generator().manual_seed(case.seed)
    q, keys, values = _tensors(subject, case.family, lengths, draw)
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


def _tensors(subject, family, lengths, draw):
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
