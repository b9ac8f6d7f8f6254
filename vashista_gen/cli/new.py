"""`vashista-gen new`: the spec of a model's shape, out of its config.json or GGUF file, with recommended settings."""

from __future__ import annotations

import keyword
import os
import re
from pathlib import Path

from vashista_gen import spec
from vashista_gen.cli.console import output as console_of_stdout
from vashista_gen.cli.console import say
from vashista_gen.cli.sources import load_each, shipped, shown
from vashista_gen.errors import SpecError, UsageError
from vashista_gen.integrations.shape import ModelShape, read_shape
from vashista_gen.plan import cost, make_plan
from vashista_gen.spec import Spec

PAGE_SIZE = 16  # a smaller page follows the needed tokens more closely; engines have this size by default
SHORT = 4096  # tokens: a model that reads no more is routed half as wide
PAGES = {True: 64, False: 128}  # routed pages, by whether the context is short
TOKENS = 1024  # the most that are kept of the routed ones for each KV head, where its softmax is spread out
MASS = 0.98  # of the softmax mass: fewer tokens where they reach it
BITS = 4  # of a channel of a key's sketch, by which routed tokens are scored
TEXT = """\
# yaml-language-server: $schema=schema.json
# Shape: {source} ({kind}: {heads}).{layers}
name: {name}
model: {{num_q_heads: {q}, num_kv_heads: {kv}, head_dim: {d}, dtype: {dtype}, sm_scale: {scale}{cap}}}
cache: {{page_size: {page}, layout: NHD, kv_dtype: {dtype}}}
routing: {{summary: subpage_mean, subpage: 4, summary_bits: 4, pages: {pages}, sink_pages: 1, recent_pages: 2}}
sketch: {{bits: {bits}, transform: page_channel}}
candidates: {{tokens: {tokens}, mass: {mass}, share: group, dense_below: {tokens}}}
attention: {{solver: softmax, epsilon: 1.0}}
certificate: {{kind: none}}
fallback: capped
targets: [cuda-sm_90a, cuda-sm_80, c]
"""


def run(source: Path, name: str | None, output: Path | None) -> None:
    """Writes the spec and says what was chosen; UsageError, and no file, where that cannot be done."""
    shape = read_shape(source)
    if not shape.full_layers:
        raise UsageError(
            f"no layer of {source} attends to its whole context: each keeps a window",
            "there is nothing to route: no spec",
        )
    target = _target(source, name, output)
    text = _text(shape, source, target.stem)
    try:
        made = spec.loads(text, shown(target))
    except SpecError as error:
        broken = "; ".join(f"{problem.rule}: {problem.message}" for problem in error.problems)
        raise UsageError(
            f"{source} and the rules of specs, nothing was written: {broken}", error.problems[0].hint
        ) from None
    _write(target, text)
    _say(shape, made, target, named=name is not None or output is not None)


def _target(source, name, output):
    """Where the spec goes; its file and its package have one name."""
    if output is not None and output.suffix != ".yaml":
        raise UsageError(f"{output} does not end in .yaml", "name a file: --output specs/my_model.yaml")
    if name is None:
        name = output.stem if output is not None else _name_of(source)
    elif output is not None and output.stem != name:
        raise UsageError(
            f"--name {name} and --output {output}: a spec has the name of its file",
            f"--output {output.with_stem(name)}",
        )
    target = output or (Path("specs") if Path("specs").is_dir() else Path()) / f"{name}.yaml"
    if target.exists() or target.is_symlink():
        raise UsageError(
            f"{shown(target)} exists; nothing was written", "choose another --name or --output, or remove it"
        )
    return target


def _name_of(source):
    """A package name out of the model's file or folder."""
    source = source.resolve()
    folder = source if source.is_dir() else source.parent
    if folder.parent.name == "snapshots":  # the hub's cache: models--<owner>--<model>/snapshots/<commit>
        folder = folder.parent.parent
    word = source.stem if source.suffix == ".gguf" else folder.name.rpartition("--")[2]
    name = re.sub(r"[^a-z0-9]+", "_", word.lower()).strip("_")
    if not name or not name[0].isalpha() or keyword.iskeyword(name):
        name = f"model_{name}".rstrip("_")
    return name[:64].rstrip("_")


def _text(shape, source, name):
    short = shape.context is not None and shape.context <= SHORT
    kept = len(shape.full_layers)
    layers = "" if kept == shape.num_layers else "\n# It is the shape of the layers that attend to the whole context."
    comment = re.sub(r"[^ -~]", "?", source.name or str(source))
    return TEXT.format(
        source=comment, kind=re.sub(r"[^ -~]", "?", shape.kind), heads=shape, layers=layers, name=name,
        q=shape.num_q_heads, kv=shape.num_kv_heads, d=shape.head_dim, dtype=shape.dtype or "bfloat16",
        scale="default" if shape.default_scale else repr(shape.sm_scale),
        cap="" if shape.logits_soft_cap is None else f", logits_soft_cap: {shape.logits_soft_cap!r}",
        page=PAGE_SIZE, pages=PAGES[short], tokens=TOKENS, mass=MASS, bits=BITS,
    )  # fmt: skip


def _write(target: Path, text: str) -> None:
    """All of the file or none, and never over another one."""
    if not target.parent.is_dir():
        raise UsageError(f"no such folder: {target.parent}", f"mkdir -p {target.parent}")
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.link(part, target)
    except FileExistsError:
        raise UsageError(f"{shown(target)} exists; nothing was written", "choose another --name or --output") from None
    finally:
        part.unlink(missing_ok=True)


def _say(shape: ModelShape, made: Spec, target: Path, named: bool) -> None:
    console = console_of_stdout()
    pages = made.routing.pages
    say(console, f"wrote {shown(target)}: {shape.kind}, {shape}")
    if not named:
        say(console, f"name        {made.name}, after the model's file or folder; --name gives it another")
    kept = len(shape.full_layers)
    if kept == shape.num_layers:
        say(console, f"layers      all {kept} attend to the whole context and decode through the package")
    else:
        which = ", ".join(map(str, shape.full_layers))
        say(
            console,
            f"layers      {kept} of {shape.num_layers} attend to the whole context ({which}); the others keep windows",
        )
    reads = f"the model reads {shape.context} tokens" if shape.context else "its context is not stated"
    said = "" if shape.dtype else " (not stated: chosen)"
    say(console, f"dtype       {made.model.dtype}{said}; float32 on a CPU")
    say(console, f"pages       {pages} of {PAGE_SIZE} tokens routed for each sequence and KV head: {reads}")
    say(console, f"tokens      the fewest of those with {MASS:.0%} of their softmax mass, at most {TOKENS}")
    say(console, f"dense       contexts of up to {made.candidates.dense_below} tokens keep every token")
    plan = make_plan(made)
    beside = cost.summary_bytes_per_token(plan) + cost.sketch_bytes_per_page(plan) / PAGE_SIZE
    share = f"{beside / cost.token_bytes(plan):.0%} of the KV cache"
    say(console, f"beside it   4-bit means of 4 tokens to route, {BITS}-bit sketches of keys to score tokens: {share}")
    same = [one.name for one in load_each(shipped())[0] if one.model == made.model and one.name != made.name]
    if same:
        say(console, f"note        the same shape: {', '.join(same)}, whose package fits this model as it is")
        say(console, "            with several, name one: hf.attach(model, package)")
    say(console, f"next: vashista-gen explain {shown(target)}; vashista-gen generate {shown(target)}")
    say(console, "next: in Python, from vashista_gen.integrations import hf; hf.attach(model); model.generate(...)")
