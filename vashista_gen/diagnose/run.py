"""The order of a diagnosis: the model or the tensors, layer by layer; then tables, sentences, files."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from vashista_gen.demo import show
from vashista_gen.errors import MissingEnvironmentError, UsageError

CONTEXTS = (2048, 4096, 8192)
BUDGET = 1024  # tokens, where no spec says


def main(
    output: Path, console: Console, *, model: str | None = None, tensors: Path | None = None, texts: Sequence[str] = (),
    spec: Path | None = None, contexts: Sequence[int] | None = None, queries: int = 16, windows: int = 1,
    budget: int = BUDGET, hull: bool = True, certificate: bool = False,
) -> int:  # fmt: skip
    """Looks at a model over texts, or at a file of tensors; prints tables and a spec; writes JSON, picture and spec.

    queries: for each context and document; windows: documents of each text; certificate: hold the spec's certificate
    against the truth, and nothing else. Returns 0. Raises UsageError for wrong
    inputs or lengths, SpecError where the model's shape cannot be compiled, DriftError for a stale package,
    MissingEnvironmentError where a package is missing.
    """
    if (model is None) == (tensors is None):
        raise UsageError("give --model or --tensors, one of them", "vashista-gen diagnose --model smollm2")
    if tensors is not None and (texts or contexts):
        raise UsageError("--text and --context go with --model", "leave them out: the file holds its own tokens")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingEnvironmentError("matplotlib is not installed", "pip install matplotlib")
    from vashista_gen.diagnose import picture, recommend, report

    if certificate and (spec is None or tensors is not None):
        raise UsageError("--certificate needs --model and --spec", "vashista-gen diagnose --model smollm2 --spec SPEC --certificate")
    with _package(spec) as package:
        budget = budget if package is None else kept_tokens(package.SPEC)
        if certificate and package.SPEC["certificate"]["kind"] == "none":
            raise UsageError(f"{spec} has no certificate", "set certificate.kind in it")
        if tensors is not None:
            result, shape = _of_tensors(tensors, package, budget, console, hull)
        else:
            parts = output / "parts" if certificate else None
            result, shape = _of_model(model, texts, package, budget, console, contexts, queries, windows, hull, parts)
    if certificate:
        console.print(report.certificate_sentence(result["certificate"]), highlight=False, soft_wrap=True)
        output.mkdir(parents=True, exist_ok=True)
        (output / "certificate.json").write_text(json.dumps(_finite(result), indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {output / 'certificate.json'}", highlight=False, soft_wrap=True)
        return 0
    result["spec"] = package.SPEC["name"] if package else None
    result["group_size"] = shape["num_q_heads"] // shape["num_kv_heads"]
    text = recommend.recommend(result, name=recommend.spec_name(result["model"]), **shape)
    for table in (report.contexts(result), report.layers(result)):
        console.print(table, crop=False, highlight=False)
        console.print()
    for sentence in [*report.sentences(result), "", "A spec to start from:", text]:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    output.mkdir(parents=True, exist_ok=True)
    places = [output / f"diagnose.{ending}" for ending in ("json", "png")]
    places.append(output / f"{recommend.spec_name(result['model'])}.yaml")
    places[0].write_text(json.dumps(_finite(result), indent=1) + "\n", encoding="utf-8")
    picture.draw(result, places[1])
    places[2].write_text(text, encoding="utf-8")
    console.print(f"wrote {', '.join(map(str, places))}", highlight=False, soft_wrap=True)
    return 0


@contextmanager
def _package(spec: Path | None) -> Iterator[Any]:
    """The spec's package, such that it certifies every step and never falls back; None without a spec."""
    if spec is None:
        yield None
        return
    from vashista_gen.diagnose import staging

    with staging.measuring(spec) as package:
        yield package


def kept_tokens(spec: dict[str, Any]) -> int:
    """The tokens of a list that a spec keeps at most: those of its pages, or fewer."""
    candidates, page_size = spec["candidates"], spec["cache"]["page_size"]
    if isinstance(candidates["tokens"], int):
        return candidates["tokens"]
    return (candidates.get("pages") or spec["routing"]["pages"]) * page_size


def _of_model(model, texts, package, budget, console, contexts, queries, windows, hull, parts) -> tuple[dict, dict]:
    """parts: for a certificate alone, the folder that keeps the figures of each document."""
    from vashista_gen.diagnose import models
    from vashista_gen.diagnose import texts as sources
    from vashista_gen.diagnose.findings import Findings
    from vashista_gen.diagnose.layer import query_positions

    given = [sources.find(name) for name in texts or sources.DEFAULTS]
    loaded = models.load(model)
    from vashista_gen.diagnose.capture import Capture

    lengths = sorted(set(contexts or [c for c in CONTEXTS if c <= loaded.longest] or [loaded.longest]))
    if lengths[-1] > loaded.longest:
        raise UsageError(
            f"--context {lengths[-1]}: {loaded.name} reads {loaded.longest} tokens", f"ask for up to {loaded.longest}"
        )
    step = package.SPEC["cache"]["page_size"] if package else 16
    if parts is not None:
        from vashista_gen.diagnose.parts import Parts

        # a certificate holds within pages too: as many queries as are asked for
        step = min(step, max(lengths[0] // 4 // queries, 1))
    positions = query_positions(lengths, queries, step)
    held = None if parts is None else Parts(parts, package, loaded.name, positions)
    findings = Findings(lengths, budget, package, with_hull=hull, certificate=held is not None)
    read = lambda text: sources.windows(loaded.tokenizer, text, lengths[-1], windows, loaded.gguf)
    documents = [one for text in given for one in read(text)]
    stages = show.Stages(console)
    capture = Capture(loaded.model, lambda layer: None)
    for document in documents:
        if held is not None and held.restore(document, findings):
            console.print(f"{document.name}: compared before", highlight=False, soft_wrap=True)
            continue
        with stages.count(f"{document.name}: {lengths[-1]:,} tokens", loaded.num_layers) as advance:

            def visit(layer, advance=advance):
                findings.add(layer)
                advance()

            capture.visit = visit
            capture.run(document.ids, positions)
        if held is not None:
            held.keep(document, findings)
    if not findings.layers:
        raise UsageError(
            f"{loaded.name}: every layer sees a sliding window shorter than {lengths[-1]} tokens",
            "there is nothing to make sparse; ask for a context within the window to see those layers",
        )
    result = findings.summary() | {
        "model": loaded.name,
        "documents": [_described(one) for one in documents],
        "windowed_layers": sorted(capture.windowed),
    }
    names = ("num_q_heads", "num_kv_heads", "head_dim", "sm_scale")
    return result, {name: getattr(loaded, name) for name in names}


def _of_tensors(path: Path, package, budget: int, console: Console, hull: bool) -> tuple[dict, dict]:
    from vashista_gen.diagnose import tensors
    from vashista_gen.diagnose.findings import Findings

    layers = tensors.read(path)
    first = layers[0]
    # whole pages only for a package; one context, the file's own
    findings = Findings([first.k.shape[1]], budget, package, with_hull=hull)
    with show.Stages(console).count(path.name, len(layers)) as advance:
        for layer in layers:
            findings.add(layer)
            advance()
    result = findings.summary() | {"model": path.stem, "documents": [], "windowed_layers": []}
    shape = {
        "num_q_heads": first.q.shape[0],
        "num_kv_heads": first.k.shape[0],
        "head_dim": first.q.shape[2],
        "sm_scale": first.sm_scale,
    }
    return result, shape


def _described(document) -> dict[str, Any]:
    text = document.text
    return {
        "name": document.name, "source": text.source, "licence": text.licence, "sha256": text.sha256,
        "tokens": document.ids.shape[1],
    }  # fmt: skip


def _finite(value: Any) -> Any:
    """The same with null for infinite numbers and NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
