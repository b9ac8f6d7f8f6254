"""The order of an evaluation: model, texts, packages; each document with all contestants; needles; report."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vashista_gen.errors import UsageError, VashistaError
from vashista_gen.eval import model as source
from vashista_gen.eval import texts as sources
from vashista_gen.eval.progress import Stages
from vashista_gen.eval.store import Store
from vashista_gen.spec import Spec, load

# float32 through 30 layers, attention summed in another order: 2e-6 of the largest logit seen; one token of 2,000 lost
# in one layer shows as 2e-3, a position off by one as 0.2
GATE = 1e-4


@dataclass(frozen=True)
class Request:
    """What to evaluate. context: tokens held at the last step; steps: tokens decoded of each document.

    needles: lengths of haystacks in tokens; texts: the user's own files, without them those known to this machine;
    also: files of further specs.
    """

    context: int
    steps: int
    documents: int
    budgets: tuple[int, ...]
    routers: tuple[str, ...]
    needles: tuple[int, ...] = ()
    texts: tuple[Path, ...] = ()
    also: tuple[Path, ...] = ()

    def prefix(self, page_size: int) -> int:
        """Tokens read before the first step: context - steps, down to whole pages."""
        return (self.context - self.steps) // page_size * page_size


def main(name: str, spec_path: Path, output: Path, cache: Path, request: Request, console: Console) -> int:
    """Evaluates a spec on a model; prints tables, writes eval.json, eval.csv, eval.png and needles.png into `output`.

    Goes on where an earlier run with the same `cache` stopped. Returns 0. Raises UsageError for a model, spec or text
    that does not fit, MissingEnvironmentError for a package or compiler that is missing, VashistaError (exit code 1)
    where dense decoding through the compiled op does not give the plain model's logits.
    """
    spec = load(spec_path)
    source.require()
    _check(request, spec)
    import torch

    from vashista_gen.eval import contestants, report

    stages = Stages(console)
    _warn_of_load(stages, torch.get_num_threads())
    others = [load(path) for path in request.also]
    field, refused = contestants.make(spec, request.budgets, request.routers, request.context, others)
    path = source.find(name, cache)
    with torch.inference_mode():
        with stages.count(f"loading {path.name} as float32"):
            loaded = source.load(path)
        source.check_fits(loaded, spec, request.context)
        offered = sources.of_files(request.texts) if request.texts else sources.known()
        wanted = request.prefix(spec.cache.page_size) + request.steps + 1
        documents = sources.encode(offered, loaded.tokenize, wanted, request.documents)
        packages = contestants.Packages(cache / "packages")
        work = Evaluation(loaded, spec, field, packages, cache, request, stages)
        straw = {length: work.straw(documents, length) for length in request.needles}
        work.compile()
        records = [work.document(text, ids) for text, ids in documents]
        needles = [work.needles(length, ids) for length, ids in straw.items()]
    result = report.result(loaded, spec, request, field, refused, documents, records, needles)
    report.show(stages, result)
    for written in report.write(result, output):
        stages.say(f"wrote {written}")
    stages.say(f"kept for the next run: prefixes, packages and results in {cache}")
    return 0


def _check(request: Request, spec: Spec) -> None:
    page = spec.cache.page_size
    if request.steps < 1 or request.prefix(page) < 2 * page:
        raise UsageError(
            f"{request.steps} decoded tokens in a context of {request.context} leave no prefix of two pages of {page}",
            "give more --context or fewer --steps",
        )


def _warn_of_load(stages: Stages, threads: int) -> None:
    """Threads that wait for each other on a busy machine take ten times as long as one does alone."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads > 1 and load + threads > 1.5 * (os.cpu_count() or 1):
        stages.say(f"load {load:.1f}: other work runs here; OMP_NUM_THREADS=1 would be faster", "yellow")


class Evaluation:
    """One model, one spec and the field of contestants; each result is kept in `cache`."""

    def __init__(self, loaded: Any, spec: Spec, field: Sequence[Any], packages: Any, cache: Path, request: Request,
                 stages: Stages) -> None:  # fmt: skip
        self.loaded, self.spec, self.field, self.packages = loaded, spec, field, packages
        self.cache, self.request, self.stages = cache, request, stages
        self.store = Store(cache / "results")
        self._keys: dict[str, str] = {}

    def compile(self) -> None:
        """Generates and compiles every contestant's package, the first time."""
        made = [one for one in self.field if one.spec is not None]
        with self.stages.count(f"{len(made)} packages, compiled the first time", len(made)) as advance:
            for one in made:
                self.packages.get(one.spec)
                advance()

    def document(self, text: Any, ids: list[int]) -> dict[str, dict[str, list[float]]]:
        """{contestant: per-token figures} of one document; only contestants without a result on disk are decoded."""
        import torch

        from vashista_gen.eval import metrics

        length = self.request.prefix(self.spec.cache.page_size)
        kind = ("document", length, self.request.steps)
        found, field, keys = self._split(kind, ids, self.field[1:])
        if field:
            dense, steps = self.field[0], self.request.steps
            decoder, prefix = self._decoder(text.name, ids[: length + 1], [dense, *field], room=steps)
            figures: dict[str, list] = {key: [] for key in metrics.PER_TOKEN}
            kept: list[list] = []
            with self.stages.count(f"{text.name}: {steps} tokens, {len(field)} contestants", steps) as advance:
                for place in range(length, length + steps):
                    logits = decoder.step(torch.full((decoder.rows,), ids[place]))
                    if place == length:
                        self._gate(logits[0], prefix.next_logits)
                    for key, values in metrics.compare(logits[0], logits[1:], ids[place + 1]).items():
                        figures[key].append(values)
                    kept.append(decoder.kept()[1:])
                    advance()
            columns = {key: torch.stack(values, dim=1).tolist() for key, values in figures.items()}
            for row, one in enumerate(field):
                found[one.name] = {key: column[row] for key, column in columns.items()}
                if kept[0][row] is not None:
                    found[one.name]["kept"] = [step[row] for step in kept]
                self.store.put(keys[one.name], found[one.name])
        return found

    def needles(self, length: int, straw: list[int]) -> dict[str, Any]:
        """{length, depths, budget, answers: {contestant: {nll, found}}} of a haystack of `length` tokens."""
        from vashista_gen.eval import needle

        hay = needle.haystack(self.loaded.tokenize, straw, length, self.loaded.bos)
        budgets = (None, self.needle_budget)
        asked = [one for one in self.field if one.as_written or one.budget in budgets]
        found, field, keys = self._split(("needle", length), [*hay.ids, hay.questions, hay.answers], asked)
        if field:
            name = f"needles, {length:,} tokens"
            # a token more than the prefix, for the gate: what the first question begins with
            behind = [*hay.ids, hay.questions[0][0]]
            count = len(hay.questions)
            decoder, _ = self._decoder(name, behind, field, each=count, room=hay.room)
            with self.stages.count(f"{name}: {count} questions, {len(field)} contestants", hay.room - 1) as advance:

                def step(tokens: Any) -> Any:
                    logits = decoder.step(tokens)
                    advance()
                    return logits

                answers = needle.ask(step, hay, len(field))
            for row, one in enumerate(field):
                found[one.name] = {key: values[row].tolist() for key, values in answers.items()}
                self.store.put(keys[one.name], found[one.name])
        return {"length": length, "depths": list(needle.DEPTHS), "budget": self.needle_budget, "answers": found}

    @property
    def needle_budget(self) -> int:
        """Tokens of the contestants that are asked for needles: the spec's own, or the nearest budget given."""
        from vashista_gen.eval.contestants import tokens_of

        own = tokens_of(self.spec)
        return min(self.request.budgets, key=lambda budget: abs(budget - own))

    def straw(self, documents: Sequence[tuple], length: int) -> list[int]:
        """Token ids [length] of the last document, between which needles go. UsageError for a length that cannot be."""
        from vashista_gen.eval import needle

        page = self.spec.cache.page_size
        least = -(-needle.least_length(self.loaded.tokenize) // page) * page
        most = (self.loaded.model.config.max_position_embeddings - needle.ROOM) // page * page
        if length % page or not least <= length <= most:
            raise UsageError(
                f"a haystack of {length} tokens: not whole pages of {page}, or not from {least} to {most}",
                f"give --needles N,... between these, such as {least}, or --needles none",
            )
        text = documents[-1][0]
        return sources.encode([text], self.loaded.tokenize, length, 1)[0][1]

    def _split(self, kind, ids, wanted):
        """(results on disk by contestant, contestants without one, where each one's result goes)."""
        found, missing, keys = {}, [], {}
        text = hashlib.sha256(str(ids).encode()).hexdigest()
        for one in wanted:
            key = keys[one.name] = (*kind, self.loaded.fingerprint, text, self._identity(one))
            record = self.store.get(key)
            if record is None:
                missing.append(one)
            else:
                found[one.name] = record
        return found, missing, keys

    def _identity(self, one):
        """What a contestant's figures depend on: the sources of its package, or the oracle's budget."""
        if one.name not in self._keys:
            digest = self.packages.digest(one.spec) if one.spec is not None else "exact logits, 1"
            self._keys[one.name] = f"{one.router} {one.budget} {digest}"
        return self._keys[one.name]

    def _decoder(self, name, ids, field, *, room, each=1):
        from vashista_gen.eval import prefix as prefixes
        from vashista_gen.eval.decode import Decoder

        layers = len(source.windows(self.loaded.model))
        with self.stages.count(f"{name}: prefix of {len(ids) - 1:,} tokens", layers) as advance:
            prefix = prefixes.get(self.loaded, ids, self.cache / "prefixes", advance)
        decoder = Decoder(
            self.loaded.model, prefix, len(ids) - 1, field, self.packages, self.spec, each=each, room=room
        )
        return decoder, prefix

    def _gate(self, dense, plain):
        """Dense decoding through the compiled op must be the plain model, or no figure here means anything."""
        gap, allowed = float((dense - plain).abs().max()), GATE * float(plain.abs().max())
        if not gap <= allowed:  # not `>`: NaN must fail
            raise VashistaError(
                f"dense op and plain model differ by {gap:.2g} in a logit (allowed {allowed:.2g}): no figures",
                "vashista-gen generate --check, then run the tests of the generated package",
            )
