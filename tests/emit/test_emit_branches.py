"""The files of a package follow from its spec: sketches, lists of tokens and certificates only where wanted."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest
from ruff import find_ruff_bin

from vashista_gen import emit, spec
from vashista_gen.plan import Plan, make_plan

BASE = """name: drawn
model: {num_q_heads: 6, num_kv_heads: 2, head_dim: 48}
cache: {page_size: 16}
"""
ALWAYS = {"levels", "__init__", "attend", "lower", "merge", "select", "summarize", "tile", "warps", "warp_attend", "warp_select"}
SKETCH = "sketch: {bits: 4, transform: hadamard}"
CASES = {
    "pages alone": ("routing: {pages: 8}", {"score"}),
    "tokens": ("routing: {pages: 8}\ncandidates: {tokens: 50}", {"score", "tokens"}),
    "pages of the routed": ("routing: {pages: 8}\ncandidates: {pages: 4}", {"score", "tokens"}),
    "sketches unused": (f"routing: {{pages: 8}}\n{SKETCH}", {"score", "sketch"}),
    "routed by sketches": (f"routing: {{pages: 8, summary: sketch}}\n{SKETCH}", {"sketch"}),
    "tokens by sketches": (
        f"routing: {{pages: 8, summary: sketch}}\n{SKETCH}\ncandidates: {{tokens: 50, share: head}}",
        {"sketch", "tokens"},
    ),
    "a projection": (
        "routing: {pages: 8}\ncandidates: {tokens: 50}\nattention: {solver: entropic_projection}",
        {"score", "tokens", "solve"},
    ),
    "a projection by sketches": (
        f"routing: {{pages: 8, summary: sketch}}\n{SKETCH}\ncandidates: {{tokens: 50, share: head}}\n"
        "attention: {solver: frank_wolfe, iterations: 5}",
        {"sketch", "tokens", "solve"},
    ),
    "an estimate": (
        "routing: {pages: 8, summary: box}\ncertificate: {kind: estimate}\nfallback: dense",
        {"score", "tokens", "certify"},
    ),
    "a proof": (
        f"routing: {{pages: 8}}\n{SKETCH}\ncandidates: {{tokens: 50, mass: 0.9}}\n"
        "certificate: {kind: rigorous}\nfallback: expand",
        {"score", "sketch", "tokens", "certify"},
    ),
    "a refresh": ("routing: {pages: 8, refresh: 16}", {"score", "renew"}),
    "a refresh of tokens": (
        f"routing: {{pages: 8, summary: sketch, refresh: 2}}\n{SKETCH}\ncandidates: {{tokens: 50}}\n"
        "certificate: {kind: rigorous}\nfallback: expand",
        {"sketch", "tokens", "certify", "renew"},
    ),
    "a projection refreshed": (
        "routing: {pages: 8, refresh: 3}\ncandidates: {tokens: 50}\nattention: {solver: entropic_projection}",
        {"score", "tokens", "solve", "renew"},
    ),
    "a calibrated margin": (
        f"routing: {{pages: 8, summary: sketch}}\n{SKETCH}\ncertificate: {{kind: calibrated, margin: file.json}}",
        {"sketch", "tokens", "certify"},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, dict[str, str], set[str]]:
    folder = tmp_path_factory.mktemp("spec")
    (folder / "file.json").write_text(json.dumps({"layers": [{"margin": 0.25, "other": 1}] * 2}), encoding="utf-8")
    text, kernels = CASES[request.param]
    plan = make_plan(spec.loads(BASE + text + "\n", "drawn.yaml", folder))
    return plan, emit.render(plan), kernels


def test_only_the_kernels_of_the_spec(case) -> None:
    plan, rendered, kernels = case
    expected = ALWAYS | kernels | ({"warp_score", "warp_tokens"} & {f"warp_{name}" for name in kernels})
    expected |= {"candidates"} if "solve" in kernels else set()  # what both solvers share
    assert ("reference_solve.py" in rendered) is ("solve" in kernels)
    assert {Path(path).stem for path in rendered if path.startswith("kernels/") and path.endswith(".py")} == expected
    assert set(plan.kernel_modules) == kernels | {"attend", "merge", "select", "summarize"}


def test_each_kernel_is_in_one_of_the_modules(case) -> None:
    plan, rendered, _ = case
    found: list[str] = []
    for module in plan.kernel_modules:
        functions = (
            node.name for node in ast.parse(rendered[f"kernels/{module}.py"]).body if isinstance(node, ast.FunctionDef)
        )
        found += [name for name in functions if name in plan.kernels]
    assert sorted(found) == sorted(set(plan.kernels) - {"merge_splits"})  # merge_states in another type
    for kernel in plan.kernels:
        assert f'"{kernel}"' in rendered["op.py"]


def test_every_name_is_defined(case, tmp_path: Path) -> None:
    _, rendered, _ = case
    for path, text in rendered.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    command = [find_ruff_bin(), "check", "--isolated", "--no-cache", "--select", "F821,F822,F811,E9", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for path, text in rendered.items():
        if path.endswith(".py"):
            check_imports(path, text, rendered)


def defined(text: str) -> set[str]:
    """Names at the top level of a module."""
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {
                name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
    return names


def check_imports(path: str, text: str, rendered: dict[str, str]) -> None:
    """Every name imported from inside the package is there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = Path(path).parents[node.level - 1] / (node.module or "").replace(".", "/")
            module = folder.with_suffix(".py").as_posix() if node.module else ""
            for alias in node.names:
                sibling = (folder / f"{alias.name}.py").as_posix()
                assert sibling in rendered or alias.name in defined(rendered[module]), (path, node.module, alias.name)


def test_calibration_is_written_only_where_it_is_read(case) -> None:
    plan, rendered, _ = case
    assert ("calibration.json" in rendered) is bool(plan.spec.calibration) is (plan.spec.certificate.margin is not None)
    if plan.spec.calibration:
        assert json.loads(rendered["calibration.json"]) == {"layers": [{"layer": n, "margin": 0.25} for n in range(2)]}
        assert "calibration.json" in emit.manifest_entry(plan, rendered)["files"]
        assert "def calibration(layer" in rendered["op.py"]
    else:
        assert "calibration.json" not in rendered["op.py"]
