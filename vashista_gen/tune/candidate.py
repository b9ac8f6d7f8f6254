"""One candidate package, in a process that may crash: compiles its library beside it and verifies what it computes.

`python -m vashista_gen.tune.candidate FOLDER NAME TARGET DEVICE DTYPE`; exit code 1 and a line on stdout say what is
wrong with it.
"""

from __future__ import annotations

import importlib
import logging
import sys


def main(folder: str, name: str, target: str, device: str, dtype: str) -> str:
    """What is wrong with the package, or an empty string."""
    import torch

    from vashista_gen.bench import verify

    logging.getLogger("tilelang").setLevel(logging.WARNING)
    sys.path.insert(0, folder)
    library = importlib.import_module(f"{name}.library")
    place = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)
    try:
        library.build(target, library.HERE / "lib" / target)
        library.load(place.type, place.index)
        package = importlib.import_module(name)
        shapes = [(3, context) for context in verify.contexts(package.SPEC)[1::2]]
        verify.verify(package, place, getattr(torch, dtype), lambda _: None, shapes)
    except Exception as error:  # whatever a compiler, a driver or the gate raises: the candidate is not taken
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


if __name__ == "__main__":
    problem = main(*sys.argv[1:])
    print(problem)
    sys.exit(1 if problem else 0)
