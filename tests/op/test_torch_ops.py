"""The custom ops: torch's own checks, fake kernels, and torch.compile without graph breaks or recompilation."""

import importlib

import pytest
import torch
import torch.fx.experimental._config as shape_config
from strategies import Case, Length
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from .subject import Step, make_step


class Recorder(TorchDispatchMode):
    """Keeps the calls of one namespace's ops."""

    def __init__(self, namespace):
        super().__init__()
        self.namespace, self.calls = namespace, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == self.namespace:
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


SHORT = (Length(eighths=12), Length(tokens=20))


def clean_step(subject, seed=0, lengths=SHORT):
    """A step without NaN: torch's checks compare inputs."""
    step = make_step(subject, Case(lengths, seed))
    clean = {name: getattr(step, name).nan_to_num() for name in ("k_cache", "v_cache")}
    return Step(**{**vars(step), **clean})


def summarize(package, step):
    calibration = package.calibration(0) if step.subject.certificate == "calibrated" else None
    return package.summarize_pages(
        step.k_cache, step.block_table, step.seq_lens, v_cache=step.v_cache, calibration=calibration
    )


def everything(package, step):
    """One call of every function of the package's face."""
    where = step.block_table, step.seq_lens
    summaries = summarize(package, step)
    old, new = step.seq_lens - 1, step.seq_lens
    package.update_summaries(summaries, step.k_cache, step.block_table, old, new, v_cache=step.v_cache)
    selected = package.select_pages(step.q, summaries, *where)
    package.score_pages(step.q, summaries, *where)
    if package.SPEC["routing"]["refresh"] > 1:
        routing = package.new_routing(len(step.lengths), step.q.device)
        for number in range(2):
            call = {"routing": routing, "step": number}
            package.decode(step.q, step.k_cache, step.v_cache, *where, summaries, **call)
        package.renew_pages(routing, *where)
    package.decode(step.q, step.k_cache, step.v_cache, *where, summaries)
    given = summaries if step.subject.sketched or step.subject.certificate != "none" else None
    package.decode(step.q, step.k_cache, step.v_cache, *where, given, selected_pages=selected)
    if step.subject.certificate != "none":
        package.decode(step.q, step.k_cache, step.v_cache, *where, summaries, return_certificate=True)
    out, lse = package.decode_dense(step.q, step.k_cache, step.v_cache, *where)
    return package.merge_states(torch.stack([out, out]), torch.stack([lse, lse]))


def test_opcheck(subject):
    op = importlib.import_module(f"{subject.package.__name__}.op")
    with Recorder(op.NAMESPACE) as recorder:
        everything(subject.package, clean_step(subject))
    defined = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith(f"{op.NAMESPACE}::")}
    assert {call[0].name() for call in recorder.calls} == defined
    for function, args, kwargs in recorder.calls:
        torch.library.opcheck(function, args, kwargs)


def test_fake_kernels_give_shapes(subject):
    """Under FakeTensorMode every function returns what the real one does, in shape, dtype and device."""
    step = clean_step(subject)
    real = everything(subject.package, step)
    summaries = step.summarize()
    calls = lambda s, x: (
        *subject.package.decode(s.q, s.k_cache, s.v_cache, s.block_table, s.seq_lens, x),
        *subject.package.decode_dense(s.q, s.k_cache, s.v_cache, s.block_table, s.seq_lens),
        subject.package.select_pages(s.q, x, s.block_table, s.seq_lens),
        *summarize(subject.package, s),
    )
    real += calls(step, summaries)
    with torch._subclasses.FakeTensorMode() as mode:
        names = ("q", "k_cache", "v_cache", "block_table", "seq_lens")
        fake_step = Step(**{**vars(step), **{x: mode.from_tensor(getattr(step, x)) for x in names}})
        fake = everything(subject.package, fake_step)
        fake += calls(fake_step, type(summaries)(*map(mode.from_tensor, summaries)))
    described = lambda tensors: [(x.shape, x.dtype, x.device, x.stride()) for x in tensors]
    assert described(real) == described(fake)


@shape_config.patch(use_duck_shape=False)  # else a batch of 2 counts as the same number as 2 KV heads
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xdist_group(name))
        for name in ("tiny", "hd64_group7_fp16", "hd64_sketch8_dense")
    ],
)
def test_compiles_once_for_every_batch_and_length(packages, name):
    """fullgraph, one compilation, and the result is that of eager mode."""
    from .conftest import on_device

    subject = on_device(packages(name), "cpu")
    package = subject.package

    def step_function(q, k_cache, v_cache, block_table, seq_lens, *summaries):
        summaries = package.Summaries(*summaries)
        package.update_summaries(summaries, k_cache, block_table, seq_lens - 1, seq_lens, v_cache=v_cache)
        asked = {} if subject.certificate == "none" else {"return_certificate": True}
        out, lse, *certificate = package.decode(q * 1.0, k_cache, v_cache, block_table, seq_lens, summaries, **asked)
        dense, dense_lse = package.decode_dense(q, k_cache, v_cache, block_table, seq_lens)
        merged = package.merge_states(torch.stack([out, dense]), torch.stack([lse, dense_lse]))
        return out + 1, lse, *merged, *(x for found in certificate for x in found)

    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(step_function, fullgraph=True, dynamic=True, backend=counter)
    for seed, lengths in enumerate([(12, 4), (3, 20, 9), (16, 2, 2, 2, 11), (24, 1)]):
        step = clean_step(subject, seed, tuple(Length(eighths=n, tokens=1) for n in lengths))
        tensors = (step.q, step.k_cache, step.v_cache, step.block_table, step.seq_lens)
        summaries = package.summarize_pages(step.k_cache, step.block_table, step.seq_lens - 1, v_cache=step.v_cache)
        wanted = step_function(*tensors, *(x.clone() for x in summaries))
        assert all(map(torch.equal, wanted, compiled(*tensors, *summaries)))
    assert counter.frame_count == 1
    torch._dynamo.reset()
