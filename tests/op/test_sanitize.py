"""tests/sanitize.py: what it chooses covers every kernel, its calls launch every kernel, verdicts are read right."""

import sys

import pytest
import sanitize
import torch

from vashista_gen import spec
from vashista_gen.plan import make_plan

from .conftest import ROOT


def test_what_is_chosen_covers_every_kernel_in_every_form():
    everything = sanitize.specs()
    taken = sanitize.chosen(everything)
    covered = set().union(*(sanitize.forms(spec.load(everything[name])) for name in taken))
    assert covered == set().union(*(sanitize.forms(spec.load(path)) for path in everything.values()))
    assert len(taken) <= len(everything) and all(taken.values())
    shipped = [make_plan(spec.load(path)) for path in sorted((ROOT / "specs").glob("*.yaml"))]
    names = {kernel for plan in shipped for kernel in plan.kernels}
    assert names | {"solve_tokens", "bound_tokens", "estimate_omitted", "certify", "attend_failed", "merge_failed"} <= {
        form[0] for form in covered
    }
    assert {solver for form in covered if form[0] == "solve_tokens" for solver in form[3:]} == {
        "entropic_projection", "frank_wolfe",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["tiny", "hd64_sketch8_dense", "hd32_pages_expand", "hd128_two_levels_mean"])
def test_every_kernel_is_launched(packages, name):
    package = packages(name)
    launches = sanitize.exercise(package, torch.device("cpu"))
    assert set(launches) == sanitize.compiled(package, torch.device("cpu"))
    library = package.op.library.load("cpu")
    assert library.call.__func__ is type(library).call  # as it was


@pytest.mark.parametrize(
    ("code", "printed", "clean"),
    [
        (0, "LAUNCHED 40\n========= ERROR SUMMARY: 0 errors\n", True),
        (0, "LAUNCHED 40\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", True),
        (9, "LAUNCHED 40\n========= Invalid __global__ read\n========= ERROR SUMMARY: 3 errors\n", False),
        (0, "LAUNCHED 40\n========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)\n", False),
        (0, "LAUNCHED 40\n", False),  # the tool did not watch
        (0, "========= ERROR SUMMARY: 0 errors\n", False),  # the process did not finish its calls
    ],
)
def test_a_verdict(code, printed, clean):
    found, lines = sanitize.verdict(code, printed, "")
    assert found == clean and bool(lines) != clean


def test_the_command():
    words = sanitize.command("/x/compute-sanitizer", "racecheck", "hd64_entropic", ROOT, ["--kernel-name", "kns=solve"])
    assert words[:3] == ["/x/compute-sanitizer", "--tool", "racecheck"] and "--error-exitcode" in words
    assert words[-5:] == [sys.executable, sanitize.__file__, "--child", "hd64_entropic", str(ROOT)]
    assert words.index("kns=solve") < words.index(sys.executable)
