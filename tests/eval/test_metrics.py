"""The figures against their definitions."""

import math

import pytest
import torch

from vashista_gen.eval import metrics


def test_two_tokens_by_hand():
    dense = torch.tensor([0.75, 0.25]).log()
    sparse = torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.75, 0.25]]).log() + 3  # logits: a constant does not matter
    got = metrics.compare(dense, sparse, target=1)
    assert got["nll"].tolist() == pytest.approx([-math.log(x) for x in (0.5, 0.8, 0.25)], rel=1e-6)
    assert got["dense_nll"].tolist() == pytest.approx([-math.log(0.25)] * 3, rel=1e-6)
    kl = [0.75 * math.log(0.75 / p) + 0.25 * math.log(0.25 / (1 - p)) for p in (0.5, 0.2, 0.75)]
    assert got["kl"].tolist() == pytest.approx(kl, abs=1e-6)
    assert got["same"].tolist()[1:] == [0, 1]


def test_means_run_over_the_tokens_of_all_documents():
    one = {"nll": [1.0, 2.0], "dense_nll": [1.0, 1.0], "kl": [0.1, 0.3], "same": [1.0, 0.0]}
    two = {"nll": [3.0], "dense_nll": [2.5], "kl": [0.2], "same": [1.0]}
    got = metrics.summary([one, two])
    assert got["tokens"] == 3 and got["documents"] == 2
    assert got["nll_difference"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert got["nll_difference_error"] == pytest.approx(0.5 / math.sqrt(3))
    assert got["perplexity"] == pytest.approx(math.exp(2))
    assert got["perplexity_change"] == pytest.approx(got["perplexity"] / got["dense_perplexity"] - 1)
    assert got["kl"] == pytest.approx(0.2)
    assert got["agreement"] == pytest.approx(2 / 3)
