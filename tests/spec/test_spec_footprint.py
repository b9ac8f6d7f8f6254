"""Hardware figures and the shared memory of an attention tile."""

from __future__ import annotations

import pytest
import yaml

from vashista_gen import spec
from vashista_gen.errors import UsageError
from vashista_gen.spec.model import DTYPES, TARGETS

CUDA_TARGETS = [target for target in TARGETS if target != "c"]


@pytest.mark.parametrize(
    ("target", "kib"),
    [
        ("cuda-sm_80", 163),
        ("cuda-sm_86", 99),
        ("cuda-sm_89", 99),
        ("cuda-sm_90", 227),
        ("cuda-sm_90a", 227),
        ("cuda-sm_100a", 227),
        ("cuda-sm_120", 99),
    ],
)
def test_shared_memory_of_each_target(target: str, kib: int) -> None:
    assert spec.hardware_of(target).shared_bytes_per_block == kib * 1024
    assert spec.hardware_of(target).shared_bytes_per_sm == (kib + 1) * 1024
    assert spec.hardware_of(target).card.bandwidth > 1e11


def test_every_figure_has_its_source() -> None:
    def figures(node: object) -> None:
        if isinstance(node, dict):
            if {"kib", "count", "gb_per_s"} & node.keys():
                assert node["source"]
            for value in node.values():
                figures(value)

    targets: list[str] = []
    for file in spec.specs_root().joinpath("hardware").iterdir():
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        figures(content)
        targets += content["targets"]
    assert sorted(targets) == sorted(CUDA_TARGETS)


def test_tile_bytes_by_hand() -> None:
    # K and V 2 x 64 x 128, Q 16 x 128, weights 16 x 64, two bytes each.
    assert spec.attention_tile(16, 128, "bfloat16", "cuda-sm_80") == spec.Tile(64, 38912, 163 * 1024)
    assert spec.attention_tile(16, 80, "bfloat16", "c") == spec.Tile(64, (2 * 64 * 96 + 16 * 96 + 16 * 64) * 2, None)


def test_smaller_tile_where_the_larger_does_not_fit() -> None:
    assert spec.attention_tile(16, 512, "bfloat16", "cuda-sm_90a").tokens == 64
    assert spec.attention_tile(16, 512, "bfloat16", "cuda-sm_86").tokens == 32
    tile = spec.attention_tile(16, 512, "float32", "cuda-sm_86")
    assert (tile.tokens, tile.shared_bytes, tile.fits) == (32, 165888, False)


def test_tile_is_a_whole_number_of_pages_or_part_of_one() -> None:
    for page_size in (16, 32, 64, 128):
        for head_dim in range(16, 513, 16):
            for dtype in DTYPES:
                for target in CUDA_TARGETS:
                    tokens = spec.attention_tile(page_size, head_dim, dtype, target).tokens
                    assert tokens % page_size == 0 or page_size % tokens == 0


def test_unknown_target_and_page_size() -> None:
    with pytest.raises(UsageError, match="no hardware figures for target cuda-sm_70"):
        spec.attention_tile(16, 128, "bfloat16", "cuda-sm_70")
    with pytest.raises(UsageError, match="no attention tile"):
        spec.attention_tile(48, 128, "bfloat16", "c")
