"""What an op keeps, by its own lse, against the tokens it says it reads."""

import types
from typing import NamedTuple

import numpy as np
import pytest
import torch

import vashista_gen.generated.tiny as op
from vashista_gen.diagnose.findings import Findings
from vashista_gen.diagnose.kept import Step, log_omitted, lse_of_all
from vashista_gen.diagnose.layer import Layer
from vashista_gen.errors import UsageError
from vashista_gen.theory import candidate_bounds

from .conftest import make_layer

PAGE = op.SPEC["cache"]["page_size"]


@pytest.mark.parametrize("seed", range(3))
def test_gap_and_routed_are_those_of_the_selected_pages(seed):
    layer = make_layer(seed)
    step = Step(op, layer)
    gaps, routed = step.support_gap(), step.routed()
    pages = op.select_pages(step.q, step.summaries, step.table, step.lens)
    for head in range(4):
        for i, position in enumerate(layer.positions.tolist()):
            chosen = [p for p in pages[i, head // 2].tolist() if p >= 0]
            candidates = [t for p in chosen for t in range(p * PAGE, (p + 1) * PAGE) if t <= position]
            inside = routed[head // 2][i].nonzero().flatten()
            assert inside[inside <= position].tolist() == candidates
            logits = (
                layer.q[head, i].double() @ layer.k[head // 2, : position + 1].double().T * layer.sm_scale
            ).numpy()
            mask = np.isin(np.arange(position + 1), candidates)
            expected = candidate_bounds.candidate_support_gap(logits, mask)
            # logits of size 10 in float32
            assert float(gaps[head, i]) == pytest.approx(expected, abs=1e-4) or gaps[head, i] == expected


def test_kept_mass_is_the_reference_s(layer):
    step = Step(op, layer)
    kept = step.kept_mass()
    wide = [x.double() if x.is_floating_point() else x for x in step.tensors]
    pages = op.select_pages(step.q, step.summaries, step.table, step.lens)
    _, lse = op.reference.decode(*wide, None, selected_pages=pages)
    _, everything = op.reference.decode_dense(*wide)
    torch.testing.assert_close(kept, (lse - everything).exp().T, rtol=0, atol=1e-5)
    assert float(kept.min()) < 0.99
    torch.testing.assert_close(lse_of_all(layer), everything.T, rtol=0, atol=1e-4)


def test_pinned_tokens_are_kept(layer):
    step = Step(op, layer)
    left_out = ~step.routed()[0][-1]
    tokens = torch.zeros(2, 512, dtype=torch.bool)
    token = int(torch.where(left_out, layer.log_weights(0)[0, -1], -torch.inf).argmax())
    tokens[0, token] = True
    before, after = step.kept_mass(), step.kept_mass(tokens)
    weight = torch.softmax(layer.log_weights(0)[0, -1].double(), -1)[token]
    assert float(before[0, -1]) < 1 - float(weight) + 1e-5  # the token is not kept
    pages = step._pages_of(tokens)
    assert pages[:, 0].tolist() == [
        token // PAGE if token // PAGE * PAGE <= p else -1 for p in layer.positions.tolist()
    ]
    chosen = op.select_pages(step.q, step.summaries, step.table, step.lens, pinned_pages=pages)
    assert token // PAGE in chosen[-1, 0].tolist()
    assert not torch.equal(before, after)


def test_log_omitted_by_hand():
    found = log_omitted(torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 1.0]).double())
    assert float(found[0]) == pytest.approx(np.log(np.e - 1))
    assert float(found[1]) == float("-inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(8, 6, 32)}, "num_q_heads 8 against 4"),
        ({"sm_scale": 0.5}, "sm_scale 0.5 against"),
        ({"positions": torch.tensor([1, 2, 3, 4, 5, 6])}, "not at the ends of pages"),
        ({"v": torch.zeros(2, 512, 16)}, "head_dim of values 16"),
    ],
)
def test_a_layer_of_another_shape_is_refused(layer, change, message):
    import dataclasses

    with pytest.raises(UsageError, match=message):
        Step(op, dataclasses.replace(layer, **change))


TOLERANCE = 0.8  # some queries of these layers omit a little less, others a little more


class Certificate(NamedTuple):
    log_omitted: torch.Tensor
    leakage: torch.Tensor
    certified: torch.Tensor


def certified_package(excess: float):
    """The tiny package with a certificate that is the truth times exp(excess): the API of specs that have one."""
    found = types.SimpleNamespace(
        **{name: getattr(op, name) for name in ("summarize_pages", "update_summaries", "select_pages")}
    )
    found.SPEC = op.SPEC | {"certificate": {"kind": "estimate", "tolerance": TOLERANCE}}

    def decode(q, *tensors, return_certificate=False, **options):
        out, lse = op.decode(q, *tensors, **options)
        if not return_certificate:
            return out, lse
        _, everything = op.decode_dense(q, *tensors[:-1])
        omitted = log_omitted(lse.double(), everything.double()) + excess
        delta = (omitted - torch.logaddexp(lse.double(), omitted)).exp()
        return out, lse, Certificate(omitted.float(), delta.float(), delta <= TOLERANCE)

    def select_tokens(q, k_cache, table, lens, summaries):
        pages = op.select_pages(q, summaries, table, lens)[..., None]
        tokens = torch.where(pages >= 0, pages * 16 + torch.arange(16), -1).flatten(2).int()
        tokens = torch.where(tokens < lens[:, None, None], tokens, -1)
        return tokens, torch.full_like(tokens, 3), (tokens >= 0).sum(-1)

    found.decode, found.select_tokens = decode, select_tokens
    return found


@pytest.mark.parametrize("excess", [0.5, -0.5])
def test_a_certificate_is_held_against_the_truth(excess):
    layers = [make_layer(seed, number=seed) for seed in range(2)]
    findings = Findings([288, 512], 64, certified_package(excess), with_hull=False)
    for one in layers:
        findings.add(one)
    found = findings.summary()["certificate"]
    assert found["slack_nats"]["median"] == pytest.approx(excess, abs=1e-2)
    assert found["share_of_estimates_too_low"] == (1.0 if excess < 0 else 0.0)
    certified, true, false = (found[f"share_{name}"] for name in ("certified", "truly_within", "falsely_certified"))
    assert 0 < true < 1
    assert (certified < true, false > 0) == (excess > 0, excess < 0)
    assert excess > 0 or certified == pytest.approx(true + false)


def test_sums_within_a_page_are_those_of_the_tokens_not_listed():
    import dataclasses

    package, layer = certified_package(0.0), make_layer(0)
    layer = dataclasses.replace(layer, positions=layer.positions - torch.arange(6))  # anywhere in their pages
    with pytest.raises(UsageError, match="not at the ends of pages"):
        Step(package, layer)
    step = Step(package, layer, anywhere=True)
    listed, _, _ = package.select_tokens(step.q, step.tensors[1], step.table, step.lens, step.summaries)
    omitted, everything = step._log_sums()
    assert omitted.dtype == everything.dtype == torch.float64
    for head in range(4):
        for i, position in enumerate(layer.positions.tolist()):
            logits = layer.q[head, i].double() @ layer.k[head // 2, : position + 1].double().T * layer.sm_scale
            assert float(everything[head, i]) == pytest.approx(float(logits.logsumexp(0)), abs=1e-12)
            left = np.setdiff1d(np.arange(position + 1), listed[i, head // 2].numpy())
            assert len(left) > 0 and float(omitted[head, i]) == pytest.approx(float(logits[left].logsumexp(0)), abs=1e-12)
    assert (step.certificate()["slack"].abs() < 1e-2).all()


def test_findings_restore_a_document():
    package = certified_package(0.5)
    first, second = (Findings([288, 512], 64, package, certificate=True) for _ in range(2))
    for seed in range(2):  # documents
        for number in (3, 5):
            first.add(make_layer(10 * seed + number, number=number))
        second.restore(first.of_last_document())
    assert second.layers == first.layers == [3, 5]
    for name in ("slack", "certified"):
        for context in (288, 512):
            assert np.array_equal(second.array(name, context), first.array(name, context))
    assert second.summary() == first.summary()


def test_findings_keep_documents_layers_and_contexts_apart():
    findings = Findings([288, 512], 64, None, with_hull=True)
    small = [
        Layer(n, one.q, one.k, one.v, one.positions, one.sm_scale)
        for n, one in ((n, make_layer(10 * n + d)) for d in range(2) for n in (3, 5))
    ]
    for one in small:
        findings.add(one)
    assert findings.layers == [3, 5]
    assert findings.array("each").shape == (2, 4, 4, 12)
    assert findings.array("each", 288).shape == (2, 4, 4, 8)
    assert findings.array("oracle", 512).shape == (2, 4, 4)
    assert findings.array("face").shape == (2, 3, 2, 1)  # of each KV head, in the first document
    result = findings.summary()
    assert np.array(result["per_layer_and_head"]["median_tokens_to_95"]["512"]).shape == (2, 4)
    classes = result["heads_by_tokens_to_95"]
    assert classes["<= 1024"] + classes["> 1024"] == result["heads"] == 8
    assert classes["<= 64"] <= classes["<= 256"] <= classes["<= 1024"]
    assert result["tokens_to_share"]["512"]["90%"]["median"] <= result["tokens_to_share"]["512"]["99%"]["median"]
    assert 0 <= result["heads_safe"] <= 8
