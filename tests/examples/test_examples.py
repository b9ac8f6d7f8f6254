"""Every example runs; generate_text, which needs a trained model, in tests/integrations/test_hf_smollm2.py."""

import pkgutil

import pytest
import torch

import vashista_gen.examples
from vashista_gen.examples import compile_step, copy_package, cuda_graph, ten_lines

RUN = {"ten_lines", "copy_package", "compile_step", "cuda_graph", "generate_text"}


def test_none_is_forgotten():
    there = {module.name for module in pkgutil.iter_modules(vashista_gen.examples.__path__)}
    assert there == RUN
    assert all(f"\n| {name} " in vashista_gen.examples.__doc__ for name in there)


def test_ten_lines(capsys):
    out, lse = ten_lines.main()
    assert (out.shape, lse.shape) == ((2, 9, 64), (2, 9))
    assert out.isfinite().all()
    assert "largest difference to dense" in capsys.readouterr().out


def test_copy_package(tmp_path):
    said = copy_package.main(tmp_path)
    assert said.startswith("decoded (1, 4, 32) with ")
    assert str(tmp_path) in said


def test_compile_step(capsys):
    """aot_eager: graph breaks and compilations are dynamo's affair, and inductor would need a C++ compiler."""
    assert compile_step.main("aot_eager") == 1
    assert "compiled 1 time for 60 steps" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_graph_says_that_it_skips(capsys):
    assert cuda_graph.main() is None
    assert capsys.readouterr().out.startswith("skipped: no CUDA device")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph():
    # the replayed kernels are those of the eager steps; bfloat16 outputs near 1
    assert cuda_graph.main() < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_step_on_a_gpu(backend, capsys):
    assert compile_step.main(backend, "cuda") == 1
    assert "compiled 1 time for 60 steps" in capsys.readouterr().out
