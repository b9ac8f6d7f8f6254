"""The demo's order of events: load, prefill, decode four ways in turn, hold dense against plain, print and draw."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from vashista_gen.demo import model as source
from vashista_gen.demo import show

# float32 through 30 layers, attention summed in another order: 2e-5 to 6e-5 seen, up to 6,000 tokens, logits to 33;
# one token of 2,000 lost in one layer shows as 0.05, a position off by one as 6
LOGIT_TOLERANCE = 1e-3
GREEDY_TOKENS = 40
PACKAGE = "vashista_gen.generated.smollm2_135m"


def main(output: Path, console: Console, *, tokens: int = 6144, steps: int = 64) -> int:
    """Decodes `steps` tokens of a document after a prefix of `tokens`, dense and sparse, with SmolLM2-135M on the CPU.

    Prints a table, writes demo.json and demo.png into `output`. Returns 0, or 1 where the dense op does not give the
    plain model's logits. Raises MissingEnvironmentError where a package is not installed, UsageError for lengths beyond
    the document or the model.
    """
    source.require()
    path = source.weights()
    import torch

    from vashista_gen.demo import gpu

    package = importlib.import_module(PACKAGE)
    stages = show.Stages(console)
    with torch.inference_mode():
        tokenizer = stages.run("reading the tokenizer", source.load_tokenizer, path)
        ids = source.document(tokenizer, tokens + steps + 1)
        model = stages.run(f"loading {path.stem} as float32", source.load_model, path)
        source.check_fits(model, package, tokens + steps + GREEDY_TOKENS)
        kernels = stages.run("loading the C kernels, compiled the first time", compiled, package)
        result, prefix = decode(model, package, ids, tokens, steps, stages)
        gap = result["max_logit_difference_dense_and_plain"]
        if not gap <= LOGIT_TOLERANCE:  # not `>`: NaN must fail
            console.print(
                f"dense op and plain model differ by {gap:.2g} in a logit (allowed {LOGIT_TOLERANCE:g}): no figures.\n"
                "    next: vashista-gen generate --check, then run the tests of the generated package",
                style="red", highlight=False,
            )  # fmt: skip
            return 1
        written = go_on(model, package, tokenizer, ids[:, : tokens + 1], prefix, stages)
    result |= {"kernels": kernels, "greedy": written}
    console.print(
        f"\ngate: dense op = plain model, largest difference of a logit {gap:.1e} (allowed {LOGIT_TOLERANCE:g})",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(f"document: {result['document']}\n", markup=False, highlight=False, soft_wrap=True)
    console.print(show.table(result))
    show.texts(console, written)
    console.print()
    result["gpu"] = stages.run("lowering the same kernels to CUDA", gpu.lower, package)
    console.print(result["gpu"], markup=False, highlight=False, soft_wrap=True)
    save(result, output)
    console.print(f"wrote {output / 'demo.json'} and {output / 'demo.png'}", highlight=False, soft_wrap=True)
    return 0


def compiled(package: Any) -> str:
    """Makes sure of the C kernels: "c", or "reference" where they cannot be had (the op then says why, once)."""
    library = importlib.import_module(f"{package.__name__}.library")
    try:
        library.load("cpu", None)
    except library.LibraryError:
        return "reference"
    return "c"


def decode(
    model: Any, package: Any, ids: Any, tokens: int, steps: int, stages: show.Stages
) -> tuple[dict[str, Any], list[tuple]]:
    """(figures, K and V of the prefix): ids [1, tokens + steps + 1], each token given, whatever the model says.

    The four ways take turns at every token, so that all of them meet the same moods of the machine.
    """
    import torch

    from vashista_gen.demo import measure
    from vashista_gen.demo.decode import Clock, Contiguous, Decoder, Paged, Plain, prefill

    with stages.count(f"prefix of {tokens:,} tokens", len(model.model.layers)) as advance:
        prefix = prefill(model, ids[:, :tokens], advance)
    clocks = {name: Clock(package) for name in ("contiguous", "dense", "sparse")}
    probe = measure.Probe(clocks["dense"], len(prefix))
    layers = {
        "contiguous": [Contiguous(clocks["contiguous"], k, v, steps) for k, v in prefix],
        "dense": [Paged(clocks["dense"], k, v, steps, sparse=False, watch=probe) for k, v in prefix],
        "sparse": [Paged(clocks["sparse"], k, v, steps, sparse=True) for k, v in prefix],
    }
    for clock in clocks.values():
        clock.seconds.clear()  # the summaries of the prefix are no part of a step
    ways: dict[str, Any] = {"plain": Plain(model, prefix)}
    ways |= {name: Decoder(model, attending, tokens) for name, attending in layers.items()}
    rows: dict[str, list] = {name: [] for name in ways}
    with stages.count(f"{steps} tokens, in four ways each", steps) as advance:
        for i in range(tokens, tokens + steps):
            for name, way in ways.items():
                rows[name].append(way.step(ids[:, i : i + 1]))
            advance()
    logits = {name: torch.cat(given) for name, given in rows.items()}
    model_spec = package.SPEC["model"]
    result = {
        "model": "SmolLM2-135M-Instruct",
        "package": package.SPEC["name"],
        "document": source.DOCUMENT,
        "tokens": tokens,
        "steps": steps,
        "group_size": model_spec["num_q_heads"] // model_spec["num_kv_heads"],
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "max_logit_difference_dense_and_plain": float((logits["dense"] - logits["plain"]).abs().max()),
    }
    read = measure.bytes_read(package.SPEC["name"], tokens + steps // 2)
    targets = ids[0, tokens + 1 : tokens + steps + 1]
    return result | measure.figures(logits, targets, probe, clocks, read), prefix


def go_on(
    model: Any, package: Any, tokenizer: Any, ids: Any, prefix: list[tuple], stages: show.Stages
) -> dict[str, str]:
    """How the model continues by itself after ids [1, tokens + 1], dense and sparse, and the end of the prefix."""
    from vashista_gen.demo.decode import Decoder, Paged

    written = {"prefix": tokenizer.decode(ids[0, -40:])}
    for name in ("dense", "sparse"):
        layers = [Paged(package, k, v, GREEDY_TOKENS, sparse=name == "sparse") for k, v in prefix]
        with stages.count(f"{GREEDY_TOKENS} tokens of its own, {name}", GREEDY_TOKENS) as advance:
            decoder = Decoder(model, layers, ids.shape[1] - 1)
            written[name] = tokenizer.decode(decoder.greedy(ids[:, -1:], GREEDY_TOKENS, advance))
    return written


def save(result: dict[str, Any], output: Path) -> None:
    """demo.json and demo.png of a result, in a folder made for them."""
    from vashista_gen.demo import picture

    output.mkdir(parents=True, exist_ok=True)
    (output / "demo.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    picture.draw(result, output / "demo.png")
