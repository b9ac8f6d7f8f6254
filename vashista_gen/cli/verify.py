"""`vashista-gen verify`: run a package's kernels on a device against the reference, and record what was seen."""

from __future__ import annotations

from pathlib import Path

from vashista_gen.cli.console import output, progress, say
from vashista_gen.cli.sources import load_all, shipped, shown
from vashista_gen.errors import DriftError

DTYPES = {"cpu": "float32"}


def run(paths: list[Path] | None, device: str | None, record: bool) -> None:
    """Prints each package's worst errors; with `record` writes them to verified.json beside the package.

    Raises DriftError for a wrong result, UsageError where the package or device is missing, or MissingEnvironmentError.
    """
    import torch

    from vashista_gen.bench import gate, machine, verify

    specs = load_all(paths or shipped())
    console = output()
    for spec in specs:
        where = machine.device(spec, device)
        package = machine.package(spec, Path(spec.source.file))
        library = machine.kernels(package, where)
        dtype = getattr(torch, DTYPES.get(where.type, spec.model.dtype))
        cases = len(verify.contexts(package.SPEC)) * len(verify.BATCHES)
        try:
            with progress(cases) as step:
                found = verify.verify(package, where, dtype, step)
        except gate.WrongResult as wrong:
            target = library.target_of(where)
            raise DriftError(
                f"{spec.name} on {target}: {wrong}", f"vashista-gen bench {spec.source.file}, and mend the kernel"
            ) from wrong
        entry = verify.entry(package, library, where, found)
        worst = ", ".join(f"{name} {error:.1e}" for name, error in entry["worst"].items())
        say(console, f"ok    {spec.name} on {library.target_of(where)} ({entry['device']}), {cases} cases: {worst}")
        if record:
            path = verify.write(Path(package.__file__).parent, library.target_of(where), entry)
            say(console, f"      recorded in {shown(path)}")
