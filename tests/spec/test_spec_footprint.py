"""Hardware figures and the shared memory of an attention tile."""

from __future__ import annotations

import pytest
import yaml

from vashista_gen import spec
from vashista_gen.errors import UsageError
from vashista_gen.spec import footprint
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
    # K and V 2 x 64 x 128, Q 16 x 128, weights 16 x 64, two bytes each; three int32 a token; three reductions
    assert spec.attention_tile(16, 128, "bfloat16", "cuda-sm_80") == spec.Tile(64, 38912 + 768 + 1536, 163 * 1024)
    padded = (2 * 64 * 96 + 16 * 96 + 16 * 64) * 2
    assert spec.attention_tile(16, 80, "bfloat16", "c") == spec.Tile(64, padded + 768 + 1536, None)


@pytest.mark.parametrize(
    ("page", "kernels"),
    [
        # score_pages: what TileLang 0.1.15 lowers it to, by the size of its dynamic shared memory; summarize: no
        # less, as tests/op/test_lowering.py sees
        (("subpage_mean", 2, 128, 512, "float32", 32), {"score_pages": 168208, "summarize": 133632 + 2 * 512 * 4}),
        (("box", None, 16, 128, "bfloat16", 64), {"score_pages": 25600, "summarize": 9216}),
    ],
)
def test_kernels_that_hold_whole_pages(page: tuple, kernels: dict[str, int]) -> None:
    assert footprint.page_kernels(*page) == kernels


def test_kernels_that_hold_whole_pages_by_hand() -> None:
    # one row of 64 pages and 16 queries, 96 channels of 4 bytes; ids of 4 x 64 pages; 16 rows and scales of 128 channels
    assert footprint.page_kernels("mean", None, 16, 80, "float32", 64) == {
        "score_pages": (16 + 64) * 96 * 4 + 1024,
        "summarize": 17 * 128 * 4 + 512,
    }
    # of two levels 32 rows of parts; a centre and a spread beside the scales of subpage means
    levels = lambda n: footprint.page_kernels("subpage_mean", 4, 16, 128, "bfloat16", 64, n)["summarize"]
    assert (levels(1), levels(2)) == (19 * 128 * 4 + 512, 35 * 128 * 4 + 512)
    # a page of 128 sketches is scored at a time, whatever the tile; its logits are float32
    assert footprint.page_kernels("sketch", None, 128, 128, "bfloat16", 64) == {
        "score_pages": (16 + 128) * 128 * 2 + 16 * 128 * 4 + 16,
        "summarize": 17 * 128 * 4 + 512,
    }


def test_a_tile_of_several_pages_fits_where_the_attention_tile_does() -> None:
    for page_size, summary, subpage in (
        (16, "box", None),
        (16, "subpage_mean", 2),
        (32, "sketch", None),
        (64, "mean", None),
    ):
        for head_dim in range(16, 513, 16):
            for dtype in DTYPES:
                for target in CUDA_TARGETS:
                    tile = spec.attention_tile(page_size, head_dim, dtype, target)
                    needs = footprint.page_kernels(summary, subpage, page_size, head_dim, dtype, tile.tokens)
                    assert not tile.fits or max(needs.values()) <= (tile.available_bytes or 0)


def test_smaller_tile_where_the_larger_does_not_fit() -> None:
    assert spec.attention_tile(16, 512, "bfloat16", "cuda-sm_90a").tokens == 64
    assert spec.attention_tile(16, 512, "bfloat16", "cuda-sm_86").tokens == 32
    tile = spec.attention_tile(16, 512, "float32", "cuda-sm_86")
    assert (tile.tokens, tile.shared_bytes, tile.fits) == (32, 165888 + 384, False)


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
