"""`vashista-gen`: the command line. Each command's work, and what it imports, lies in a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vashista_gen.cli.calibrate import calibrate
from vashista_gen.cli.diagnose import diagnose
from vashista_gen.cli.failure import Commands

app = typer.Typer(
    name="vashista-gen",
    cls=Commands,
    help="Compile a YAML spec of sparse attention decoding into kernels, a torch reference and a torch op.",
    epilog="Exit codes: 0 ok, 1 drift or mismatch, 2 bad spec or usage, 3 missing environment.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)
Specs = Annotated[
    list[Path] | None, typer.Argument(metavar="[SPEC...]", help="Spec files; all shipped ones if none is given.")
]
OneSpec = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec file.")]


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        from vashista_gen import __version__

        print(f"vashista-gen {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        from vashista_gen.errors import UsageError

        raise UsageError("no command given", "vashista-gen --help")


@app.command()
def check(specs: Specs = None) -> None:
    """Check specs: an ok line for each good one, every problem of the others with its line and rule."""
    from vashista_gen.cli.check import run

    run(specs)


@app.command()
def new(
    source: Annotated[
        Path, typer.Option("--from-config", metavar="FILE|DIR", help="A model's config.json, folder or .gguf file.")
    ],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the package; else the model's.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="The spec file; else NAME.yaml, in specs/ where there is one."),
    ] = None,
) -> None:
    """Write the spec of a model's shape, with recommended settings; never over an existing file."""
    from vashista_gen.cli.new import run

    run(source, name, output)


@app.command()
def generate(
    specs: Specs = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 and list the files that differ.")
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Write nothing; print what would change, exit 1 if anything.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that were edited by hand.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the packages; generated/ of the checkout if not given."),
    ] = None,
) -> None:
    """Write the package of each spec: only files that differ. Without SPEC, packages without a spec are removed."""
    from vashista_gen.cli.generate import run

    run(specs, out, check=check, diff=diff, force=force)


@app.command()
def explain(
    spec: OneSpec,
    context: Annotated[
        str | None, typer.Option(metavar="N,...", help="Context lengths in tokens, such as 8192,32k,1M.")
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Sequences of a step.")] = 1,
) -> None:
    """Show what a spec becomes: kernels, bytes read dense against sparse, bounds of time, tiles and memory."""
    from vashista_gen.cli.explain import run

    run(spec, context, batch)


@app.command()
def build(
    spec: OneSpec,
    target: Annotated[str, typer.Option(metavar="TARGET[,...]", help="c or cuda-<arch>, out of the spec's targets.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the libraries.")] = Path("libraries"),
) -> None:
    """Compile the kernels of a generated package ahead of time."""
    from vashista_gen.cli.build import run

    run(spec, target, out)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the picture and the table go.")] = Path(
        "demo-output"
    ),
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of the document to read.")] = 6144,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens to decode.")] = 64,
) -> int:
    """Decode a real model over a long document on the CPU, dense and sparse, and compare."""
    from vashista_gen.cli.console import output as console
    from vashista_gen.demo.run import main as run

    return run(output, console(), tokens=tokens, steps=steps)


@app.command()
def bench(
    spec: OneSpec,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the measurements go.")] = Path("bench-output"),
    context: Annotated[str | None, typer.Option(metavar="N,...", help="Context lengths, such as 1k,8k,64k.")] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Sequences of a step.")] = 1,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="cuda if there is one, else cpu.")] = None,
    require: Annotated[
        list[str] | None, typer.Option(metavar="NAME@CONTEXT>=X", help="Fail below a ratio, such as speedup@8k>=3.")
    ] = None,
    cold_import: Annotated[
        bool, typer.Option("--cold-import", help="Also time the package's import in fresh interpreters.")
    ] = False,
) -> int:
    """Measure a spec's decode step against torch's attention on this machine, behind a correctness gate."""
    from vashista_gen.bench.run import main as run
    from vashista_gen.cli.console import output as console
    from vashista_gen.cli.explain import parse_contexts

    contexts = parse_contexts(context) if context else None
    return run(
        spec, output, console(), contexts=contexts, batch=batch, device=device, require=require or (),
        cold_import=cold_import,
    )  # fmt: skip


@app.command()
def tune(
    spec: OneSpec,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="cuda if there is one, else cpu.")] = None,
    batch: Annotated[
        list[int] | None, typer.Option(metavar="N", min=1, help="A batch to find the break-even of; repeat for more.")
    ] = None,
    context: Annotated[
        str | None, typer.Option(metavar="N,...", help="Contexts among which the break-even is, such as 1k,4k,16k.")
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels/--no-kernels", help="Compile and try other tiles and warps, or launches alone.")
    ] = True,
) -> None:
    """Measure on this device the kernels' tiles, how attention is best split, when dense is faster; kept by the spec."""
    from vashista_gen.cli.explain import parse_contexts
    from vashista_gen.tune.run import main as run

    contexts = parse_contexts(context) if context else None
    run(spec, device=device, batches=batch, contexts=contexts, kernels=kernels)


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder, .gguf file, or a package that has one.")],
    spec: Annotated[Path, typer.Option(metavar="SPEC", help="The spec file, of the model's shape.")],
    also: Annotated[
        list[Path] | None, typer.Option(metavar="SPEC", help="Another spec of this shape, as written; repeat for more.")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where tables and pictures go.")] = Path("eval-output"),
    budgets: Annotated[str, typer.Option(metavar="N,...", help="Tokens of spec and peers.")] = "128,256,512,1024",
    context: Annotated[str, typer.Option(metavar="N", help="Tokens held at the last step.")] = "8192",
    steps: Annotated[int, typer.Option(metavar="N", help="Tokens decoded of each document.")] = 256,
    documents: Annotated[int, typer.Option(metavar="N", min=1, help="Documents, out of those on this machine.")] = 4,
    text: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Your own document; repeat for more.")] = None,
    routers: Annotated[
        str, typer.Option(metavar="NAME,...", help="Out of spec, mean, quest, recent, oracle.")
    ] = "spec,mean,quest,recent,oracle",
    needles: Annotated[
        str, typer.Option(metavar="N,...", help="Lengths of haystacks, such as 1k,4k; none for no needles.")
    ] = "1024,2048,4096",
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Prefixes, packages and results that are done.")
    ] = None,
) -> int:
    """Decode long texts and find needles with a real model on the CPU: the spec and its peers against dense."""
    from vashista_gen.cli.eval import run

    return run(
        model, spec, output, cache_dir, budgets=budgets, context=context, steps=steps, documents=documents,
        routers=routers, needles=needles, texts=text or [], also=also or [],
    )  # fmt: skip


app.command()(diagnose)
app.command()(calibrate)


@app.command()
def verify(
    specs: Specs = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="cuda if there is one, else cpu.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write what was seen to verified.json beside the package.")
    ] = False,
) -> None:
    """Run generated kernels on a device against the reference, poisoned outputs, twice and from a CUDA graph."""
    from vashista_gen.cli.verify import run

    run(specs, device, record)


@app.command()
def doctor() -> int:
    """Say what this machine has of what the work needs, and the next command for what is missing."""
    from vashista_gen.cli.doctor import run

    return run()


def main() -> None:
    """Entry point of the script `vashista-gen`."""
    app()


if __name__ == "__main__":
    main()
