"""Centre and balance of a layer's keys: what a low-bit code of a key is better off knowing."""

from __future__ import annotations

import torch

from vashista_gen.diagnose.layer import Layer

SMALLEST = 1e-10  # of a head's mean square: channels that are always 0 get a scale all the same


class KeyStatistics:
    """Sums over documents, in float64: mean key and value, mean squares of keys and queries, of one layer."""

    def __init__(self) -> None:
        self.tokens = self.queries = 0
        self._k = self._v = self._kk = self._qq = torch.zeros((), dtype=torch.float64)

    def add(self, layer: Layer) -> None:
        """Another document of the same layer."""
        k, q = layer.k.double(), layer.q.double()
        self._k = self._k + k.sum(1)
        self._v = self._v + layer.v.double().sum(1)
        self._kk = self._kk + k.square().sum(1)
        grouped = q.view(k.shape[0], -1, q.shape[-1])  # [kv heads, group * queries, d]
        self._qq = self._qq + grouped.square().sum(1)
        self.tokens += k.shape[1]
        self.queries += grouped.shape[1]

    def center(self) -> torch.Tensor:
        """Mean key, float64 [kv heads, d]."""
        return self._k / self.tokens

    def value_center(self) -> torch.Tensor:
        """Mean value, float64 [kv heads, d]."""
        return self._v / self.tokens

    def balance(self) -> torch.Tensor:
        """b = (E q^2 / E (k - center)^2)^(1/4) of channels c and c + d/2 together, float64 [kv heads, d/2].

        With k <- b k and q <- q / b both have mean squares sqrt(E q^2 E k_c^2): an error of a key's code then weighs
        the same in every channel of the logit. Its geometric mean is 1 for each head, so that no logit's size moves.
        """
        keys = _pairs(self._kk / self.tokens - self.center().square())
        queries = _pairs(self._qq / self.queries)
        scale = (queries / keys) ** 0.25
        return scale / scale.log().mean(-1, keepdim=True).exp()


def _pairs(squares: torch.Tensor) -> torch.Tensor:
    """Mean squares [heads, d] -> of each RoPE pair [heads, d/2], not below SMALLEST of the head's."""
    half = squares.shape[-1] // 2
    pairs = (squares[:, :half] + squares[:, half:]) / 2
    floor = SMALLEST * pairs.mean(-1, keepdim=True)
    return pairs.clamp(min=0).maximum(floor).clamp(min=torch.finfo(torch.float64).tiny)
