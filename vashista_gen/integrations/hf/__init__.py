"""transformers models that decode through a generated package.

    from vashista_gen.integrations import hf
    hf.attach(model)                      # the package of the model's shape, found among the generated ones
    model.generate(**inputs)              # prefill by sdpa, each further token by the package's op

Layers that attend to the whole context keep their keys and values in pages (`SparseCache`); layers with a sliding
window stay as transformers runs them. Padding never enters the pages. `detach(model)` undoes it.

Contains: the attention and mask functions, the cache, the choice of a package.
Must not contain: anything of one model; what a layer needs is read from its config and module.
"""

from vashista_gen.integrations.hf.attach import attach, detach
from vashista_gen.integrations.hf.attention import ATTENTION
from vashista_gen.integrations.hf.cache import SparseCache

__all__ = ["ATTENTION", "SparseCache", "attach", "detach"]
