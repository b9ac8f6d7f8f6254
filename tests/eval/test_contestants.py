"""Which contestants a spec gives, and the specs they are compiled from."""

import pytest

from vashista_gen.errors import SpecError, UsageError
from vashista_gen.eval import contestants
from vashista_gen.eval.contestants import ROUTERS, derive, make, tokens_of
from vashista_gen.spec import load, loads, specs_root

TINY = load(specs_root().joinpath("tiny.yaml"))
TINY_TEXT = specs_root().joinpath("tiny.yaml").read_text()
TWO_STAGE = loads(
    "name: two\nmodel: {num_q_heads: 4, num_kv_heads: 2, head_dim: 32}\ncache: {page_size: 16}\n"
    "routing: {pages: 32}\ncandidates: {tokens: 96, share: head}\n"
)


def test_each_router_at_each_budget_and_the_spec_as_written():
    found, refused = make(TINY, (64, 96), tuple(ROUTERS), 1000)
    names = [one.name for one in found]
    assert names[:2] == ["dense", "spec"]
    # spec@64 would be the spec as written once more
    assert names[2:] == ["spec@96", *(f"{router}@{b}" for router in list(ROUTERS)[1:] for b in (64, 96))]
    assert not refused
    assert [one.budget for one in found] == [None, 64, 96, *[64, 96] * 4]
    assert found[0].share(TINY, 1000) == 1
    shares = {one.name: one.share(TINY, 1000) for one in found}
    assert shares["oracle@64"] == 0.064
    assert 0.05 < shares["recent@64"] < shares["mean@64"] < shares["quest@64"] < 0.2


def test_peers_are_what_they_are_called():
    mean, quest, recent = (derive(TINY, router, 96) for router in ("mean", "quest", "recent"))
    assert (mean.routing.summary, mean.routing.summary_bits, mean.routing.pages) == ("mean", 16, 6)
    assert (quest.routing.summary, quest.routing.summary_bits, quest.routing.box_weight) == ("box", 16, 1.0)
    assert recent.routing.sink_pages + recent.routing.recent_pages == recent.routing.pages == 6
    for one in (mean, quest, recent):
        assert one.model == TINY.model and one.cache == TINY.cache
        assert one.candidates.tokens is None
        assert tokens_of(one) == 96
    assert len({one.name for one in (mean, quest, recent, TINY)}) == 4


def test_a_budget_of_tokens_leaves_the_routed_pages():
    small, large = derive(TWO_STAGE, "spec", 48), derive(TWO_STAGE, "spec", 1024)
    assert (small.candidates.tokens, small.routing.pages, small.candidates.share) == (48, 32, "head")
    assert (large.candidates.tokens, large.routing.pages) == (1024, 64)
    assert tokens_of(TWO_STAGE) == 96
    assert derive(TWO_STAGE, "spec", 96) is TWO_STAGE
    assert derive(TINY, "spec", 96).routing.pages == 6


def test_a_budget_of_kept_pages_moves_those():
    text = "name: kept\nmodel: {num_q_heads: 4, num_kv_heads: 2, head_dim: 32}\ncache: {page_size: 16}\n"
    spec = loads(text + "routing: {pages: 32}\nsketch: {bits: 4}\ncandidates: {pages: 8}\n")
    assert tokens_of(spec) == 128
    assert (derive(spec, "spec", 64).candidates.pages, derive(spec, "spec", 64).routing.pages) == (4, 32)


def test_a_budget_below_what_is_always_kept_is_left_out_and_said():
    with pytest.raises(SpecError):
        derive(TINY, "spec", 32)
    found, refused = make(TINY, (32,), ("spec", "mean"), 1000)
    assert [one.name for one in found] == ["dense", "spec"]
    assert set(refused) == {"spec@32", "mean@32"}
    assert all("R23" in reason for reason in refused.values())


@pytest.mark.parametrize(
    ("budgets", "routers", "message"),
    [
        ((60,), ("spec",), "whole number of pages"),
        ((512,), ("spec",), "keeps all"),
        ((64,), ("best",), "no router best"),
    ],
)
def test_wrong_budgets_and_routers(budgets, routers, message):
    with pytest.raises(UsageError, match=message):
        make(TINY, budgets, routers, 512)


def test_other_specs_come_as_they_are_written():
    text = TINY_TEXT.replace("name: tiny", "name: wider").replace("pages: 4", "pages: 6")
    wider = loads(text)
    found, _ = make(TINY, (64,), ("mean",), 1000, [wider])
    assert [one.name for one in found] == ["dense", "wider", "mean@64"]
    assert (found[1].label, found[1].budget, found[1].spec) == ("wider, as written", 96, wider)
    with pytest.raises(UsageError, match="wider is the name of two contestants"):
        make(TINY, (64,), ("mean",), 1000, [wider, wider])
    with pytest.raises(UsageError, match="differ in model or cache"):
        make(TINY, (64,), ("mean",), 1000, [loads(text.replace("head_dim: 32", "head_dim: 64"))])


def test_packages_of_two_peers_live_beside_each_other(cache):
    packages = contestants.Packages(cache / "packages")
    mean = derive(TINY, "mean", 64)
    one, two = packages.get(TINY), packages.get(mean)
    assert one.SPEC["name"] == "tiny" and two.SPEC["routing"]["summary"] == "mean"
    assert packages.get(mean) is two
    assert packages.digest(TINY) != packages.digest(mean)
    assert packages.digest(TINY) == contestants.Packages(cache / "packages").digest(TINY)


def test_what_is_judged_routes_every_step(tmp_path, monkeypatch):
    """Also where the spec, or a tuning beside it, has short steps read whole."""
    import torch

    class Compiled:
        LibraryError = RuntimeError

        @staticmethod
        def load(device, index):
            """Nothing is computed here."""

    monkeypatch.setattr(contestants.Packages, "_library", staticmethod(lambda module: Compiled))
    text = specs_root().joinpath("tiny.yaml").read_text().replace("pages: 4", "pages: 4, dense_up_to: 900")
    packages, cpu = contestants.Packages(tmp_path), torch.device("cpu")
    spec = loads(text, "tiny.yaml")
    assert packages.get(spec).op.tuning.of(cpu).dense_up_to == () and spec.routing.dense_up_to == 900
