"""What a program around a generated package needs at decode time: the paged cache and its page summaries.

Contains: torch code that works with any generated package handed to it as `package`.
Must not contain: kernels (they are generated), a model, or anything of one inference engine.
"""

from vashista_gen.runtime.cache import PagedCache
from vashista_gen.runtime.pages import PageTable

__all__ = ["PageTable", "PagedCache"]
