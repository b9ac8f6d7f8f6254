"""Kernels with the least and the most of every constant that `tune` may take compute what they should."""

from dataclasses import replace

import pytest
from strategies import EMPTY, LONG, ONE, Case, Length

from vashista_gen import spec
from vashista_gen.spec.kernels import kernel_choices

from .conftest import HAS_GPU, SPECS, on_device
from .properties import check_decode, check_dense, check_selection
from .summary_properties import check_summaries

ON_GPU = ("hd64_two_levels", "hd96_sketch2_mass", "hd48_group5", "hd128_two_levels_mean")
CASES = (
    Case((EMPTY, ONE, LONG), seed=1),
    Case((Length(eighths=14, tokens=-1), Length(eighths=8), Length(pages=1)), seed=2, family="outliers"),
    Case((Length(eighths=23, tokens=7), ONE), seed=4, family="huge"),
)


def _parameters():
    gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")]
    found = [("tiny", "cpu", 0), ("hd96_sketch2_mass", "cpu", -1)]
    found += [(name, "cuda", end) for name in ON_GPU for end in (0, -1)]
    for name, device, end in found:
        yield pytest.param(name, device, end, id=f"{name}-{device}{end}", marks=gpu if device == "cuda" else [])


@pytest.mark.parametrize(("name", "device", "end"), list(_parameters()))
def test_tuned_kernels(packages, name, device, end):
    loaded = spec.load(SPECS[name])
    kernels = {one: {key: v[end] for key, v in kernel_choices(loaded, one).items()} for one in loaded.targets}
    subject = on_device(packages(replace(loaded, name=f"{name}_tuned{abs(end)}", kernels=kernels)), device)
    constants = subject.part("constants")
    assert (kernels["c"]["tile_tokens"], constants.TILE_TOKENS_C) == ((8, 8), (64, 64))[end]
    if "cuda-sm_90a" in kernels:
        assert constants.ATTEND_WARPS == kernels["cuda-sm_90a"]["attend_warps"] == (2, 8)[end]
    for case in CASES:
        check_dense(subject, case)
        check_decode(subject, case)
        check_selection(subject, case)
        check_summaries(subject, case)
