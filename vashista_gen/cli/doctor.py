"""`vashista-gen doctor`: what this machine has of what the work needs, and the next command for what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vashista_gen.cli.console import new_table, output, say, show, working

PROGRAM = "#include <math.h>\ndouble root(double x) { return sqrt(x); }\nint main(void) { return root(4.0) != 2.0; }\n"
INSTALL_RUN = 'pip install -e ".[run]"'


@dataclass(frozen=True)
class Finding:
    """One row: `needed` on the CPU path or not; `next` is empty when it is fine, else the command that mends it."""

    what: str
    found: str
    next: str = ""
    needed: bool = True


def run() -> int:
    """Prints the table; 3 when something the CPU path needs is missing, 1 when only the generated packages differ."""
    with working("looking"):
        findings = [finding for look in LOOKS for finding in look()]
    console = output()
    table = new_table("", "what", "found")
    for f in findings:
        state, style = ("ok", "green") if not f.next else ("missing", "red") if f.needed else ("no", "yellow")
        table.add_row(state, f.what, f.found, style=style if f.next else None)
    show(console, table, keep_lines=True)
    for f in findings:
        if f.next:
            say(console, f"{f.what}{'' if f.needed else ' (optional)'}: next: {f.next}")
    missing = [f for f in findings if f.next and f.needed]
    if not missing:
        say(console, "All that generating, compiling and decoding on a CPU need is here.")
    return 0 if not missing else 1 if all(f.what == "generated packages" for f in missing) else 3


def _python() -> Iterator[Finding]:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    old = sys.version_info < (3, 10)
    yield Finding("Python", found, "make a virtual environment with Python 3.10 or later" if old else "")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", _why(error), INSTALL_RUN)
        return
    yield Finding("torch", torch.__version__)
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        yield Finding("CUDA device", f"{torch.cuda.get_device_name()}, sm_{major}{minor}", needed=False)
    else:
        step = "none is needed on the CPU path; on a machine with a GPU, install torch with CUDA"
        yield Finding("CUDA device", "none that torch can use", step, needed=False)


def _distributions() -> Iterator[Finding]:
    pins = dict(_pins())
    for name, install in (
        ("tilelang", INSTALL_RUN),
        ("apache-tvm-ffi", INSTALL_RUN),
        ("jinja2", "pip install jinja2"),
        ("pyyaml", "pip install pyyaml"),
        ("ruff", "pip install ruff"),
    ):
        needed = name != "apache-tvm-ffi"  # loads CUDA libraries only
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "not installed", install, needed)
            continue
        wanted = pins.get(name, version)
        other = version != wanted
        found = f"{version}, not the tested {wanted}" if other else version
        yield Finding(name, found, f"pip install {name}=={wanted}" if other else "", needed)


def _compilers() -> Iterator[Finding]:
    command = shlex.split(os.environ.get("CC", "gcc")) or ["gcc"]
    step = "apt-get install gcc (or set CC to a C compiler)"
    place = shutil.which(command[0])
    if place is None:
        yield Finding("C compiler", f"{command[0]}: not found", step)
    else:
        trouble = _compile([place, *command[1:]])
        yield Finding("C compiler", f"{place} {trouble}" if trouble else f"{place}, compiles", step if trouble else "")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(os.environ.get("CUDA_HOME", ""), "bin"))
    step = "none is needed on the CPU path; to compile for CUDA, install the CUDA toolkit and set CUDA_HOME"
    yield Finding("nvcc", nvcc or "not found", "" if nvcc else step, needed=False)


def _cache() -> Iterator[Finding]:
    cache = Path(os.environ.get("VASHISTA_GEN_CACHE") or Path.home() / ".cache" / "vashista_gen")
    size = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())
    existing = next(p for p in (cache, *cache.absolute().parents) if p.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    found = f"{cache}, {size / 2**20:.1f} MiB" if writable else f"{cache} cannot be written"
    yield Finding("cache folder", found, "" if writable else "export VASHISTA_GEN_CACHE=<a folder that you can write>")


def _generated() -> Iterator[Finding]:
    try:
        from vashista_gen import emit
        from vashista_gen.cli.sources import checkout_output, load_all, shipped, shown
        from vashista_gen.errors import UsageError, VashistaError
        from vashista_gen.plan import make_plan
    except ImportError:
        return  # its row above says what to install
    try:
        folder = checkout_output()
    except UsageError:
        yield Finding("generated packages", "as installed; no checkout to compare with")
        return
    try:
        specs = load_all(shipped())
        changes = emit.compare([make_plan(spec) for spec in specs], folder, whole=True)
    except VashistaError as error:
        yield Finding("generated packages", str(error).splitlines()[0], "vashista-gen generate --check")
        return
    orphans = sorted({change.path.split("/")[0] for change in changes} & _folders(folder) - {one.name for one in specs})
    if orphans:
        step = "move its spec into specs/, or vashista-gen generate, which removes it"
        yield Finding("generated packages", f"{', '.join(orphans)}: no spec of this name in specs/", step)
    elif changes:
        yield Finding("generated packages", f"{len(changes)} files differ", "vashista-gen generate")
    else:
        yield Finding("generated packages", f"{len(specs)} in {shown(folder)}, current")


def _folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _torch, _distributions, _compilers, _cache, _generated)


def _pins() -> Iterator[tuple[str, str]]:
    """(name, version) of the requirements that are pinned to one version."""
    try:
        requires = importlib.metadata.requires("vashista-gen") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for line in requires:
        name, equal, version = line.split(";")[0].partition("==")
        if equal:
            yield name.strip(), version.strip()


def _compile(command: list[str]) -> str:
    """What went wrong when compiling and running three lines of C; empty when nothing did."""
    with tempfile.TemporaryDirectory() as scratch:
        source, program = Path(scratch, "three_lines.c"), Path(scratch, "three_lines")
        source.write_text(PROGRAM, encoding="utf-8")
        try:
            done = subprocess.run(
                [*command, str(source), "-o", str(program), "-lm"], capture_output=True, text=True, timeout=60
            )
            if done.returncode:
                return f"fails on three lines of C: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
            ran = subprocess.run([str(program)], timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"cannot be run: {_why(error)}"
        return "makes programs that do not run" if ran.returncode else ""


def _why(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
