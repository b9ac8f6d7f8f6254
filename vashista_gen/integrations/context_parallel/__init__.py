"""A sequence's KV pages over several ranks: page p lies on rank p mod ranks, a step agrees on one selection."""

from vashista_gen.integrations.context_parallel.decoder import ContextParallelDecoder
from vashista_gen.integrations.context_parallel.shard import local_lengths, local_page, owner

__all__ = ["ContextParallelDecoder", "local_lengths", "local_page", "owner"]
