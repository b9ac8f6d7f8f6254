"""One line that makes a transformers model decode through a generated package, and one that undoes it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from transformers.cache_utils import DynamicCache

from vashista_gen.errors import UsageError
from vashista_gen.integrations.hf.attention import ATTACHED, ATTENTION
from vashista_gen.integrations.hf.cache import SparseCache
from vashista_gen.integrations.hf.choose import attention_modules, choose
from vashista_gen.integrations.hf.layer import PagedLayer, Settings


class Attached:
    """What ties a model to a package: hooks that give each forward pass its cache. `new_cache()` makes one by hand."""

    def __init__(self, model: Any, settings: Settings) -> None:
        self.settings = settings
        self._cache: SparseCache | None = None  # of the forward pass that is running
        self._began: Any = None
        decoder = model.get_decoder()
        self._implementation = decoder.config._attn_implementation
        decoder.set_attn_implementation(ATTENTION)
        for module in attention_modules(model):
            setattr(module, ATTACHED, self)
        self._hooks = []
        for module in dict.fromkeys((model, decoder)):
            self._hooks += [
                module.register_forward_pre_hook(self._begin, with_kwargs=True),
                module.register_forward_hook(self._end, always_call=True),
            ]

    def new_cache(self) -> SparseCache:
        """An empty cache for `past_key_values`; without one, each generation gets its own."""
        return SparseCache(self.settings)

    def paged_layer(self, index: int) -> PagedLayer | None:
        """The paged layer of the forward pass that is running; None for a layer that has none."""
        layer = self._cache.layers[index] if self._cache is not None else None
        return layer if isinstance(layer, PagedLayer) else None

    def remove(self, model: Any) -> None:
        """Takes hooks, attributes and the attention implementation back."""
        for hook in self._hooks:
            hook.remove()
        for module in attention_modules(model):
            delattr(module, ATTACHED)
        model.get_decoder().set_attn_implementation(self._implementation)

    def _begin(self, module, args, kwargs):
        if self._began is not None:  # the decoder inside its model: the outer one has done it
            return None
        kwargs = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
        cache = self._cache_for(module, kwargs)
        if cache is not None:
            cache.expect(kwargs.get("attention_mask"))
            kwargs["past_key_values"] = cache
        self._cache, self._began = cache, module
        return (), kwargs

    def _end(self, module, *_):
        if self._began is module:
            self._cache = self._began = None

    def _cache_for(self, module, kwargs):
        """The pages of this forward pass; None where nothing is kept."""
        given = kwargs.get("past_key_values")
        if given is None:
            wanted = kwargs.get("use_cache")
            wanted = getattr(module.config.get_text_config(), "use_cache", False) if wanted is None else wanted
            return self.new_cache() if wanted and not module.training else None
        if isinstance(given, SparseCache):
            if given.settings is not self.settings:
                raise UsageError(
                    "the cache was made for another attachment", "attached = hf.attach(model); attached.new_cache()"
                )
            return given
        ours = type(given) is DynamicCache and not given.offloading and not getattr(given, "_is_user_defined", False)
        if not ours or given.get_seq_length():
            raise UsageError(
                f"a {type(given).__name__} cannot hold pages",
                "leave out past_key_values and cache_implementation, or give attached.new_cache()",
            )
        cache = self.new_cache()  # generate made an empty one: ours takes its place
        if any(getattr(layer, "record_past", False) for layer in given.layers):
            cache.activate_past_recording()
        return cache


def attach(
    model: Any,
    package: ModuleType | None = None,
    *,
    dense_layers: Iterable[int] = (),
    max_tokens: int | None = None,
    calibration: Any = None,
) -> Attached:
    """Makes `model`, a transformers decoder, decode through a generated package; `generate` needs no other change.

    package: the one generated package of the model's shape if not given. dense_layers: layers whose decode reads every
    token. max_tokens: of a row, to make room for at once; pools grow as needed without. calibration: an object whose
    layer(i) is handed to the package (Settings). Prefill and layers with a window stay with sdpa.
    Raises UsageError where no package fits (with the command that writes its spec), where several do, or where one is
    attached already.
    """
    decoder = model.get_decoder()
    modules = attention_modules(model)
    if any(hasattr(module, ATTACHED) for module in modules):
        raise UsageError(f"a package is attached to this {type(model).__name__} already", "hf.detach(model) first")
    chosen = choose(model, package)
    config = decoder.config
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        raise UsageError(
            f"{type(model).__name__} attends in both directions", "attach packages to causal decoders only"
        )
    if any(hasattr(module, "sinks") for module in modules):
        raise UsageError(
            f"{type(model).__name__} has attention sinks of its own, which no package knows", "leave it dense"
        )
    dense = frozenset(dense_layers)
    cache = SparseCache(settings := Settings(chosen, config, dense, max_tokens, calibration))
    paged = {layer.index for layer in cache.paged}
    if not paged:
        raise UsageError(
            f"no layer of {type(model).__name__} attends to its whole context",
            "leave it as it is: there is nothing to route",
        )
    _check_calibration(settings, paged)
    wrong = sorted(dense - set(range(len(cache.layers))))
    if wrong:
        raise UsageError(f"dense_layers {wrong} of a model of {len(cache.layers)} layers", "count layers from 0")
    missing = paged - {module.layer_idx for module in modules}
    if missing:
        raise UsageError(
            f"the attention of layers {sorted(missing)} of {type(model).__name__} was not found",
            "only modules with layer_idx and k_proj are understood",
        )
    return Attached(model, settings)


def _check_calibration(settings, paged):
    """UsageError for a calibration of which the package makes no use, or which lacks one of the layers."""
    if settings.calibration is not None:
        sketch = settings.package.SPEC.get("sketch", {}).get("bits")
        routing = settings.package.SPEC["routing"]
        centred = routing["summary"] == "subpage_mean" and routing.get("summary_bits") in (4, 8)
        if not (sketch or centred or settings.certified or settings.takes_budgets):
            raise UsageError(
                f"the package {settings.package.SPEC['name']} has no use for a calibration",
                "leave it out, or give the spec sketches, a number of tokens or a certificate",
            )
    for layer in sorted(paged):
        try:
            settings.calibrated(layer, "cpu")
        except (LookupError, ValueError) as error:
            raise UsageError(
                f"the calibration has no layer {layer}: {error}", "calibrate the model itself: vashista-gen calibrate"
            ) from error


def detach(model: Any) -> None:
    """Undoes `attach`; UsageError where nothing is attached. Caches made so far cannot be used any further."""
    attached = next((m.__dict__.get(ATTACHED) for m in attention_modules(model) if ATTACHED in m.__dict__), None)
    if attached is None:
        raise UsageError(f"no package is attached to this {type(model).__name__}", "hf.attach(model)")
    attached.remove(model)
