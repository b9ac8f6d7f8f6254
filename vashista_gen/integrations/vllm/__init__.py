"""Generated packages on vLLM's caches and metadata: layouts, writes by slot, an attention layer of vLLM's signature.

What is here runs without vLLM and is tested without it, on tensors of the shapes and strides that vLLM makes. It is not
registered with vLLM as a backend: no vLLM has run it.
"""

from vashista_gen.integrations.vllm.layer import SparseAttentionImpl
from vashista_gen.integrations.vllm.layout import kv_halves
from vashista_gen.integrations.vllm.metadata import DecodeStep
from vashista_gen.integrations.vllm.write import write_tokens

__all__ = ["DecodeStep", "SparseAttentionImpl", "kv_halves", "write_tokens"]
