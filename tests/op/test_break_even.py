"""Short steps are read whole: what decides it, what comes of it, and the tuning that a package looks up."""

import importlib
import json

import pytest
import torch
from strategies import Case, Length

from vashista_gen.spec import load
from vashista_gen.spec.tuning import path_of

from .conftest import ROOT, write_package
from .subject import make_step, wide

LENGTHS = (Length(eighths=12, tokens=3), Length(tokens=20), Length())
FAR = ((1, 2**31 - 1),)


def whole(subject, tokens=FAR):
    return subject.part("tuning").changed(dense_up_to=tokens)


def routed(step, summaries, **given):
    with whole(step.subject, ()):
        return step.certify(summaries, **given)


def same(first, second):
    return all(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in zip(first, second, strict=True))


def test_within_the_break_even_every_token_is_attended_to(subject):
    step = make_step(subject, Case(LENGTHS, seed=1))
    summaries = step.summarize()
    with whole(subject):
        found = step.certify(summaries)
    dense = step.decode_dense()
    assert same(found[:2], dense)
    assert not same(routed(step, summaries)[:2], dense), "the case is too short to tell dense from sparse"
    host = [x.cpu().double() if x.is_floating_point() else x.cpu() for x in (step.q, step.k_cache, step.v_cache)]
    with whole(subject):
        reference = subject.package.reference.decode(
            *host, step.block_table.cpu(), step.seq_lens.cpu(), wide(summaries),
            **({} if subject.certificate == "none" else {"return_certificate": True}),
        )  # fmt: skip
    exact = subject.package.reference.decode_dense(*host, step.block_table.cpu(), step.seq_lens.cpu())
    assert same(reference[:2], exact)
    if subject.certificate == "none":
        return
    for out, certificate in ((found[0], found[2:]), (reference[0], reference[2])):
        error = (out.cpu().double() - exact[0]).norm(dim=-1)
        gap, scored, log_omitted, leakage, bound, certified = (x.cpu() for x in certificate)
        for b, length in enumerate(step.lengths):
            for h in range(subject.kv_heads):
                heads = (b, step.heads(h))
                if subject.audited(length, h):
                    assert certified[heads].all() and (leakage[heads] == 0).all()
                    assert (bound[heads] >= error[heads]).all()
                    assert (log_omitted[heads] == float("-inf")).all()
                    assert (gap[heads] == float("inf")).all() and (scored[heads] == float("inf")).all()
                else:
                    assert not certified[heads].any() and leakage[heads].isnan().all()


def test_the_least_of_table_and_max_seq_len_decides(tiny):
    step = make_step(tiny, Case(LENGTHS, seed=1))
    summaries, longest = step.summarize(), max(step.lengths)
    room = step.block_table.shape[1] * tiny.page_size
    sparse, dense = routed(step, summaries), step.decode_dense()
    for bound, up_to, takes_all in (
        (None, room, True), (None, room - 1, False), (longest, longest, True), (longest, longest - 1, False),
        (2 * room, room, True), (2**31 - 1, room - 1, False),
    ):  # fmt: skip
        with whole(tiny, ((1, up_to),)):
            found = step.decode(summaries, max_seq_len=bound)
            if takes_all:
                torch.testing.assert_close(found[0], dense[0])
            else:
                assert same(found, sparse)
            pages = step.select_pages(summaries)
            given = step.decode(summaries, selected_pages=pages, max_seq_len=bound)
            assert same(given, sparse)


def test_bounds_of_the_dense_op(tiny):
    """It takes max_seq_len too, for its splits; checked mode compares it."""
    step = make_step(tiny, Case(LENGTHS, seed=1))
    longest = max(step.lengths)
    with tiny.part("tuning").changed(split_tokens=16):
        several, few = step.decode_dense(), step.decode_dense(max_seq_len=longest)
    torch.testing.assert_close(several, few)
    torch.testing.assert_close(few, step.decode_dense())
    with tiny.package.checked(), pytest.raises(ValueError, match="at most max_seq_len"):
        step.decode_dense(max_seq_len=longest - 1)
    with whole(tiny), tiny.package.checked(), pytest.raises(ValueError, match="at most max_seq_len"):
        step.decode(step.summarize(), max_seq_len=longest - 1)


def test_a_step_read_whole_looks_at_no_summaries(tiny):
    step = make_step(tiny, Case(LENGTHS, seed=1))
    arguments = (step.q, step.k_cache, step.v_cache, step.block_table, step.seq_lens)
    with whole(tiny):
        assert same(tiny.package.decode(*arguments, None), tiny.package.decode_dense(*arguments))
    with pytest.raises(TypeError, match="summaries must be"):
        tiny.package.decode(*arguments, None)


def test_the_nearest_batch_decides(tiny):
    tuning = tiny.part("tuning")
    with whole(tiny, ((1, 4096), (4, 1024), (16, 0))):
        found = {batch: tuning.dense_up_to(tiny.device, batch) for batch in (0, 1, 2, 3, 7, 9, 16, 500)}
    assert found == {0: 4096, 1: 4096, 2: 4096, 3: 1024, 7: 1024, 9: 0, 16: 0, 500: 0}
    assert tuning.dense_up_to(tiny.device, 1) == 0


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [(1.5, TypeError, "an int on the host, got float"), (True, TypeError, "got bool"), (-1, ValueError, "is -1"),
     (torch.tensor(3), TypeError, "got Tensor")],
)  # fmt: skip
def test_a_wrong_max_seq_len(tiny, value, error, words):
    step = make_step(tiny, Case(LENGTHS))
    with pytest.raises(error, match=f"^tiny: max_seq_len .*{words}"):
        step.decode(step.summarize(), max_seq_len=value)


def test_checked_mode_compares_it_with_the_lengths(tiny):
    step = make_step(tiny, Case(LENGTHS))
    summaries, longest = step.summarize(), max(step.lengths)
    with tiny.package.checked():
        step.decode(summaries, max_seq_len=longest)
        words = rf"seq_lens\[0\] is {longest}, it must be at most max_seq_len, {longest - 1}"
        with pytest.raises(ValueError, match=words):
            step.decode(summaries, max_seq_len=longest - 1)
    assert same(step.decode(summaries, max_seq_len=longest - 1), step.decode(summaries))


def test_compiled_with_changing_bounds(tiny):
    """One compilation for every max_seq_len, and each decides anew."""
    from torch._dynamo.testing import CompileCounterWithBackend

    step = make_step(tiny, Case(LENGTHS, seed=1))
    summaries = step.summarize()
    arguments = (step.q, step.k_cache, step.v_cache, step.block_table, step.seq_lens)
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    function = lambda most: tiny.package.decode(*arguments, summaries, max_seq_len=most)[0] + 1
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    with whole(tiny, ((1, 150),)):
        for most in (149, 150, 151, 2000):
            assert torch.equal(compiled(most), function(most))
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """(knobs, source, change of the spec) -> the package's `tuning`, of a spec `tuned` beside its tuning file."""
    names = iter(range(100))

    def make(knobs, source=None, routing="pages: 4"):
        name = f"tuned{next(names)}_{tmp_path.name.split('-')[-1].strip('_')}"
        text = (ROOT / "specs" / "tiny.yaml").read_text(encoding="utf-8")
        path = tmp_path / f"{name}.yaml"
        path.write_text(text.replace("name: tiny", f"name: {name}").replace("pages: 4", routing), encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path / "packages")
        write_package(tmp_path / "packages", load(path))
        tuning = importlib.import_module(f"{name}.tuning")
        if knobs is not None:
            source = source or tuning.library.source_hash()
            entry = {"source": source, "knobs": knobs, "versions": {"torch": "9"}, "times": []}
            path_of(tmp_path, name).parent.mkdir(exist_ok=True)
            content = json.dumps({tuning.name_of(torch.device("cpu")): entry})
            path_of(tmp_path, name).write_text(content, encoding="utf-8")
        write_package(tmp_path / "packages", load(path))
        return tuning

    return make


def test_a_package_looks_up_its_device(tuned):
    cpu = torch.device("cpu")
    default = tuned(None)
    assert default.of(cpu) == default.DEFAULTS["cpu"] and not (default.library.HERE / "tuning.json").exists()
    tuning = tuned({"split_tokens": 128, "dense_up_to": [[1, 500], [8, 64]]})
    assert tuning.of(cpu) == default.DEFAULTS["cpu"]._replace(split_tokens=128, dense_up_to=((1, 500), (8, 64)))
    written = json.loads((tuning.library.HERE / "tuning.json").read_text())
    assert set(written[tuning.name_of(cpu)]) == {"source", "knobs"}
    assert tuning._of("cpu", 0) == tuning.of(cpu)
    assert tuning.of(torch.device("meta")) == default.DEFAULTS["cpu"]
    if not torch.cuda.is_available():  # a fake CUDA tensor, when a model is traced elsewhere
        assert tuning.of(torch.device("cuda", 0)) == default.DEFAULTS["cuda"]
    elsewhere = tuned({"split_tokens": 128})
    elsewhere._processor = lambda: "another processor"
    assert elsewhere.of(cpu) == default.DEFAULTS["cpu"]


def test_a_tuning_of_other_kernels_is_not_used_and_said(tuned):
    tuning = tuned({"split_tokens": 128}, source="0" * 64)
    with pytest.warns(RuntimeWarning, match="for other kernels than these.*next: vashista-gen tune"):
        assert tuning.of(torch.device("cpu")) == tuning.DEFAULTS["cpu"]


def test_what_the_spec_says_comes_before_what_was_measured(tuned):
    tuning = tuned({"split_tokens": 128, "dense_up_to": [[1, 500]]}, routing="pages: 4, dense_up_to: 300")
    found = tuning.of(torch.device("cpu"))
    assert (found.split_tokens, found.dense_up_to) == (128, ((1, 300),))


def test_a_spec_that_always_routes(tuned):
    tuning = tuned({"dense_up_to": [[1, 500]]}, routing="pages: 4, dense_up_to: 300")
    spec = load(next(tuning.library.HERE.parents[1].glob(f"{tuning.library.NAME}.yaml")))
    assert spec.tuning and spec.routing.dense_up_to == 300
    routed = spec.always_routed()
    assert not routed.tuning and routed.routing.dense_up_to is None and routed.model == spec.model
