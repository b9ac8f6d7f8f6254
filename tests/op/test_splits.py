"""In how many parts a row is attended to where the blocks that have one each form a cluster: a choice of the host alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import examples

from vashista_gen import spec

from .conftest import ROOT

# clusters of 1, 2, ..., 16 blocks of 128 threads and 168 registers that an H100 says it runs at once
H100 = (396, 198, 124, 92, 69, 62, 47, 45, 37, 30, 28, 28, 23, 21, 21, 21)


class Device:
    """Stands for a compiled library on a device that runs so many clusters of each size."""

    clustered = frozenset({"attend_tokens"})

    def __init__(self, held: tuple[int, ...]) -> None:
        self.held = held

    def clusters(self, kernel: str, blocks: int) -> int:
        assert kernel in self.clustered
        return self.held[blocks - 1]


@pytest.fixture(scope="module")
def op(packages):
    return packages(spec.load(ROOT / "specs" / "smollm2_135m.yaml")).op


def rows_of(op, batch: int) -> torch.Tensor:
    return torch.empty(batch, op.NUM_Q_HEADS, op.HEAD_DIM)


@examples(200)
@given(
    batch=st.integers(1, 300),
    asked=st.integers(1, 64),
    slots=st.integers(1, 8192),
    held=st.lists(st.integers(0, 500), min_size=16, max_size=16).map(lambda x: tuple(sorted(x, reverse=True))),
)
@example(batch=1, asked=64, slots=1024, held=H100)
@example(batch=20, asked=6, slots=1024, held=H100)
@example(batch=20, asked=6, slots=1000, held=H100)
@example(batch=200, asked=1, slots=1024, held=H100)
@example(batch=1, asked=16, slots=1024, held=H100[:8] + (0,) * 8)
def test_clusters_of_all_rows_run_at_once_and_no_block_is_idle(op, batch, asked, slots, held):
    splits, *parts = op._parts_or_cluster(Device(held), "attend_tokens", rows_of(op, batch), asked, slots)
    turns = lambda n: -(-slots // (op.TURN_TOKENS * n))
    fitting = [n for n in range(2, min(asked, 16) + 1) if held[n - 1] >= batch * op.NUM_KV_HEADS]
    most = max(fitting, default=1)
    assert parts == [None, None]
    assert 1 <= splits <= most
    assert turns(splits) == turns(most), "fewer splits may not take longer"
    assert splits == 1 or turns(splits - 1) > turns(most), "a split more than is of use"


def test_without_clusters_the_parts_are_in_memory(op):
    splits, out, lse = op._parts_or_cluster(Device(H100), "attend_pages", rows_of(op, 3), 5, 1024)
    assert splits == 5
    assert out.shape == (5, 3, op.NUM_KV_HEADS, op.GROUP_SIZE, op.HEAD_DIM) and lse.shape == out.shape[:-1]
