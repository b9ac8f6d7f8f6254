"""A generated package behind plan() and run() of FlashInfer's BatchDecodeWithPagedKVCacheWrapper."""

from __future__ import annotations

import math
from typing import Any

import torch

from vashista_gen.errors import UsageError
from vashista_gen.integrations.flashinfer.page_table import page_table
from vashista_gen.integrations.summary_store import SummaryStore

LOG2_E = 1 / math.log(2)
# FlashInfer's options that change no result: accepted, without effect
HINTS = frozenset({"non_blocking", "enable_pdl", "disable_split_kv", "fixed_split_size"})

PagedKV = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class SparseDecodeWithPagedKVCacheWrapper:
    """Sparse decode attention with the calls of flashinfer.BatchDecodeWithPagedKVCacheWrapper, and two more.

        wrapper = SparseDecodeWithPagedKVCacheWrapper(package, kv_layout="NHD")
        wrapper.plan(indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size)
        wrapper.summarize(paged_kv_cache)               # once for each layer, after the prefill
        ...append one token to every sequence, plan again...
        wrapper.update(paged_kv_cache, appended=1)      # for each layer, before its run
        out = wrapper.run(q, paged_kv_cache)

    paged_kv_cache: (k, v), each [pages, page_size, kv heads, d] (NHD) or [pages, kv heads, page_size, d] (HND), or
    one tensor [pages, 2, ...]; nothing is copied. kv_layout and every argument of plan must be those the package was
    generated for, else UsageError: they are compiled in. lse is in base 2, as FlashInfer's: log2 sum exp(s /
    epsilon); a sequence without pages gives 0 and -inf. A request that joins is summarised by `summarize`, or by
    `update` with its length among `appended`; pages keep their summaries as long as the cache lives, whoever shares
    them.

    use_cuda_graph: block table and lengths then lie in buffers made here, [batch of paged_kv_last_page_len_buffer,
    max_pages], which `plan`, outside the graph, writes in place; `update` and `run` may be captured once and replayed
    after each plan. max_pages bounds a sequence's pages; routing takes a little time for each page of the table.
    FlashInfer's three buffers are kept up to date if they are given. float_workspace_buffer, use_tensor_cores and
    backend are not used. summaries: a SummaryStore to share with other wrappers, such as those of other batch sizes.
    """

    def __init__(
        self,
        package: Any,
        float_workspace_buffer: torch.Tensor | None = None,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: torch.Tensor | None = None,
        paged_kv_indices_buffer: torch.Tensor | None = None,
        paged_kv_last_page_len_buffer: torch.Tensor | None = None,
        backend: str = "auto",
        *,
        max_pages: int | None = None,
        summaries: SummaryStore | None = None,
    ) -> None:
        self.package = package
        self.summaries = SummaryStore(package) if summaries is None else summaries
        self._spec = package.SPEC
        self._same("kv_layout", kv_layout, self._spec["cache"]["layout"], "cache.layout")
        solver = self._spec["attention"]["solver"]
        if solver != "softmax":
            raise UsageError(
                f"{self._spec['name']} computes a projection ({solver}), no softmax, and returns no lse",
                "generate a package with attention.solver: softmax",
            )
        if self.summaries.package is not package:
            raise UsageError("the SummaryStore is of another package", "make one store for each package")
        self._buffers = (paged_kv_indptr_buffer, paged_kv_indices_buffer, paged_kv_last_page_len_buffer)
        self._graph = use_cuda_graph
        self._max_pages = max_pages
        self._table = self._lens = self._longest = None  # for a graph the longest is what max_pages holds
        if use_cuda_graph:
            if paged_kv_last_page_len_buffer is None or max_pages is None:
                raise UsageError(
                    "use_cuda_graph without paged_kv_last_page_len_buffer or without max_pages",
                    "give paged_kv_last_page_len_buffer, int32 [batch], and max_pages, the most pages of a sequence",
                )
            last = paged_kv_last_page_len_buffer
            self._table = torch.zeros(len(last), max_pages, dtype=torch.int32, device=last.device)
            self._lens = torch.zeros(len(last), dtype=torch.int32, device=last.device)

    @property
    def is_cuda_graph_enabled(self) -> bool:
        """Whether block table and lengths stay where they are."""
        return self._graph

    def plan(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        pos_encoding_mode: str = "NONE",
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype | str | None = None,
        kv_data_type: torch.dtype | str | None = None,
        data_type: torch.dtype | str | None = None,
        sm_scale: float | None = None,
        **other: Any,
    ) -> None:
        """Takes the page lists of a step (see page_table); the other arguments must be the package's.

        Reads indptr and last_page_len on the host, so it cannot stand in a CUDA graph. sm_scale: 1 / sqrt(head_dim)
        if not given. Raises UsageError for what does not fit or is not supported; nothing has changed then.
        """
        model = self._spec["model"]
        self._same("num_qo_heads", num_qo_heads, model["num_q_heads"], "model.num_q_heads")
        self._same("num_kv_heads", num_kv_heads, model["num_kv_heads"], "model.num_kv_heads")
        self._same("head_dim", head_dim, model["head_dim"], "model.head_dim")
        self._same("page_size", page_size, self._spec["cache"]["page_size"], "cache.page_size")
        self._same("pos_encoding_mode", pos_encoding_mode, "NONE", None)
        self._same("window_left", window_left, -1, None)
        self._same("logits_soft_cap", logits_soft_cap or None, model["logits_soft_cap"], "model.logits_soft_cap")
        scale = head_dim**-0.5 if sm_scale is None else sm_scale
        if not math.isclose(scale, model["sm_scale"], rel_tol=1e-6):
            self._same("sm_scale", scale, model["sm_scale"], "model.sm_scale")
        for name, given in (("q_data_type", q_data_type), ("kv_data_type", kv_data_type), ("data_type", data_type)):
            if given is not None:
                self._same(name, str(given).removeprefix("torch."), self._dtype(indices.device), "model.dtype")
        _refuse("plan", other)
        table, lens, longest = page_table(indptr, indices, last_page_len, page_size, self._max_pages)
        if not self._graph:
            self._table, self._lens, self._longest = table, lens, longest
            return
        self._same("the batch of a wrapper for a CUDA graph", len(lens), len(self._lens), None)
        self._table.copy_(table)
        self._lens.copy_(lens)
        for buffer, given in zip(self._buffers, (indptr, indices, last_page_len), strict=True):
            if buffer is not None:
                buffer[: len(given)].copy_(given)

    def summarize(self, paged_kv_cache: PagedKV, *, calibration: Any = None) -> None:
        """Makes, or renews, the summaries of every page of the planned sequences, for one layer's cache.

        calibration: this layer's, as for `package.summarize_pages`.
        """
        k, v = self._halves(paged_kv_cache)
        self.summaries.summarize(k, v, *self._planned(), calibration=calibration)

    def update(self, paged_kv_cache: PagedKV, appended: int | torch.Tensor = 1) -> None:
        """Renews the summaries of the pages that hold the last `appended` tokens of each planned sequence.

        appended: one number, or int32 [batch] on the cache's device; a sequence shorter than that is renewed whole.
        Call it when K is written and the lengths that include the new tokens are planned. Reads nothing back from the
        device.
        """
        k, v = self._halves(paged_kv_cache)
        table, lens = self._planned()
        self.summaries.update(k, v, table, (lens - appended).clamp(min=0).int(), lens)

    def run(
        self,
        q: torch.Tensor,
        paged_kv_cache: PagedKV,
        *,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        return_lse: bool = False,
        **other: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attention of q [batch, query heads, d] over the candidates: out like q, lse float32 [batch, heads] in base 2.

        Raises UsageError without a plan, without summaries of this cache, and for an option that is not supported;
        ValueError or TypeError of the package for tensors that do not fit.
        """
        _refuse("run", other)
        k, v = self._halves(paged_kv_cache)
        wanted = return_lse or lse is not None
        given = {"max_seq_len": self._longest, "out": out, "lse": lse}
        out, lse = self.package.decode(q, k, v, *self._planned(), self.summaries.of(k), **given)
        if wanted:
            lse.mul_(LOG2_E)
        return (out, lse) if return_lse else out

    def run_return_lse(self, q: torch.Tensor, paged_kv_cache: PagedKV, **options: Any) -> tuple:
        """`run` with return_lse=True."""
        return self.run(q, paged_kv_cache, return_lse=True, **options)

    begin_forward, forward, forward_return_lse = plan, run, run_return_lse

    def reset_workspace_buffer(self, *buffers: torch.Tensor) -> None:
        """Does nothing: no workspace is used."""

    def _planned(self):
        if self._lens is None:
            raise UsageError("the wrapper has no plan", "call plan(indptr, indices, last_page_len, ...) first")
        return self._table, self._lens

    def _halves(self, paged_kv_cache):
        if isinstance(paged_kv_cache, torch.Tensor):
            if paged_kv_cache.dim() != 5 or paged_kv_cache.shape[1] != 2:
                raise UsageError(
                    f"a paged_kv_cache of {list(paged_kv_cache.shape)}",
                    "give one tensor [pages, 2, ...], or the tuple (k_cache, v_cache)",
                )
            return paged_kv_cache.unbind(1)
        return paged_kv_cache

    def _dtype(self, device):
        return "float32" if device.type == "cpu" else self._spec["model"]["dtype"]

    def _same(self, name, given, compiled, key):
        """The argument must be what the package was generated for."""
        if given != compiled:
            step = f"generate a package with {key}: {given}" if key else f"give {compiled!r}; nothing else is supported"
            raise UsageError(f"{name} is {given!r}, and {self._spec['name']} is made for {compiled!r}", step)


def _refuse(call, other):
    """Options of FlashInfer's that would change the result."""
    for name, value in other.items():
        if value is not None and name not in HINTS:
            raise UsageError(f"{call}({name}={value!r}) is not supported", f"leave {name} out, or use FlashInfer")
