"""A generated package is self-contained: copy its folder into a program, and vashista_gen is not needed there.

python -m vashista_gen.examples.copy_package /tmp/my_server
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import vashista_gen.generated.tiny as package

PROGRAM = '''\
"""Somebody's server: it brings its own copy of the package and imports nothing of vashista_gen."""

import sys

sys.modules["vashista_gen"] = None  # an import of it would fail

import torch
from kernels import sparse as op

cache = torch.randn(8, 16, 2, 32)
table, lens = torch.arange(8, dtype=torch.int32).view(1, 8), torch.tensor([100], dtype=torch.int32)
summaries = op.summarize_pages(cache, table, lens)
out, lse = op.decode(torch.randn(1, 4, 32), cache, cache, table, lens, summaries)
print("decoded", tuple(out.shape), "with", op.__file__)
'''


def main(folder: Path) -> str:
    """Writes the program and its copy of the package into `folder` and runs it; what it prints."""
    target = folder / "kernels" / "sparse"
    shutil.copytree(Path(package.__file__).parent, target, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "serve.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, "serve.py"], cwd=folder, capture_output=True, text=True, check=True)
    print(done.stdout, end="")
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
