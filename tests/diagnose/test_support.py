"""Support, gap and mass against their definitions, written out."""

import math

import numpy as np
import pytest
import torch

from vashista_gen import theory
from vashista_gen.diagnose.anchors import anchors
from vashista_gen.diagnose.hull import faces
from vashista_gen.diagnose.layer import Layer
from vashista_gen.diagnose.support import SHARES, effective_support, group_support, growth, tokens_to

from .conftest import make_layer


def test_tokens_to_counts_the_largest_first():
    weights = torch.tensor([[0.1, 0.55, 0.35], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert tokens_to(weights, (0.5, 0.85, 0.95)).tolist() == [[1, 1, 2], [2, 1, 3], [3, 1, 3]]


@pytest.mark.parametrize("seed", range(3))
def test_support_and_oracle_mass_by_hand(seed):
    layer = make_layer(seed)
    found = effective_support(layer, budget=40)
    for head in range(4):
        for i, position in enumerate(layer.positions.tolist()):
            group = layer.q[head // 2 * 2 : head // 2 * 2 + 2, i].double()
            logits = group @ layer.k[head // 2, : position + 1].double().T * layer.sm_scale
            p = torch.softmax(logits, dim=-1)
            best = p.sum(0).sort(descending=True).indices[:40]
            assert found.kept[head, i] == pytest.approx(float(p[head % 2, best].sum()), abs=1e-5)
            for s, share in enumerate(SHARES):
                count = int(found.each[s, head, i])
                falling = p[head % 2].sort(descending=True).values.cumsum(0)
                # float32 weights: a share may be reached a token earlier or later only within 1e-6 of it
                assert falling[count - 1] >= share - 1e-6
                assert count == 1 or falling[count - 2] < share + 1e-6


def test_group_support_is_the_group_row_of_support(layer):
    torch.testing.assert_close(group_support(layer, 0.98), effective_support(layer, 1).group[SHARES.index(0.98)])


def test_growth_is_the_exponent():
    assert growth([1024, 2048, 8192], [3 * c**0.3 for c in (1024, 2048, 8192)]) == pytest.approx(0.3)
    assert growth([1024, 2048], [7, 7]) == pytest.approx(0)
    assert math.isnan(growth([1024], [7]))


def test_an_anchor_is_found_and_the_ends_are_not():
    layer = make_layer(1)
    k = layer.k.clone()
    q = layer.q[:1, :1].expand(4, 6, 32) / layer.q[0, 0].norm()
    # logits below 1 everywhere but for tokens 200 and 3 of KV head 0, to which every query attends
    k[0, 200] = k[0, 3] = 100 * q[0, 0]
    changed = Layer(0, q, k, layer.v, layer.positions, layer.sm_scale)
    routed = [torch.zeros(6, 512, dtype=torch.bool) for _ in range(2)]
    routed[0][:, 3] = True
    found = anchors(changed, routed)
    assert found.tokens.nonzero().tolist() == [[0, 200]]
    assert float(found.mass[0, -1]) == pytest.approx(0.5, abs=1e-3)
    assert float(found.mass_omitted[0, -1]) == pytest.approx(float(found.mass[0, -1]))
    assert float(found.omitted[0, -1]) == pytest.approx(0.5, abs=1e-3)
    assert float(found.omitted[2, -1]) == pytest.approx(1)
    assert float(found.mass[2].max()) == 0


def test_the_face_is_the_theory_s(layer):
    small = Layer(0, layer.q, layer.k[:, :48], layer.v[:, :48], torch.tensor([7, 15, 23, 31, 39, 40]), layer.sm_scale)
    found = faces(small, 5)
    assert len(found) == 2
    keys, q = small.k[1, :41].double().numpy(), small.q[2, 5].double().numpy() * small.sm_scale
    projection = theory.project_onto_hull(keys, q)
    assert found[1].size == len(projection.active_face)
    assert found[1].gap == projection.support_gap > 0
    p = np.exp(keys @ q)
    assert found[1].mass == pytest.approx(p[projection.active_face].sum() / p.sum())
