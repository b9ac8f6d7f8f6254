"""Generated packages behind the calls of FlashInfer's batch decode wrapper; FlashInfer itself is not needed."""

from vashista_gen.integrations.flashinfer.page_table import page_table
from vashista_gen.integrations.flashinfer.wrapper import SparseDecodeWithPagedKVCacheWrapper
from vashista_gen.integrations.summary_store import SummaryStore

__all__ = ["SparseDecodeWithPagedKVCacheWrapper", "SummaryStore", "page_table"]
