"""What check, generate, explain, build and doctor do and say."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from running import assert_error, invoke

from vashista_gen import emit, spec
from vashista_gen.cli import doctor, sources, words
from vashista_gen.cli.explain import microseconds, size, tokens
from vashista_gen.errors import UsageError
from vashista_gen.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "specs" / "tiny.yaml"
SHIPPED = sorted((ROOT / "specs").glob("*.yaml"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_of_all_shipped_specs() -> None:
    result = invoke("check")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok"] * len(SHIPPED)


def test_check_reports_every_problem_of_every_file(here: Path) -> None:
    many = ROOT / "tests" / "invalid" / "many_at_once.yaml"
    (here / "wrong.yaml").write_text(TINY.read_text(encoding="utf-8").replace("pages: 4", "pages: 0"), encoding="utf-8")
    result = invoke("check", many, "wrong.yaml", TINY)
    assert_error(result, 2, "in wrong.yaml", "specs/README.md")
    assert "ok    " in result.stdout and "tiny" in result.stdout
    assert len(re.findall(r"many_at_once\.yaml:\d+: R\d+: ", result.stderr)) >= 10
    assert re.search(r"^wrong\.yaml:\d+: R21: .*\n    next: ", result.stderr, re.MULTILINE)
    assert re.search(r"^wrong\.yaml:\d+: R10: ", result.stderr, re.MULTILINE)


def test_the_repository_is_current() -> None:
    result = invoke("generate", "--check")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("are current\n")


def test_generate_writes_then_has_nothing_to_do(here: Path) -> None:
    first = invoke("generate", TINY, "--out", "out")
    assert first.exit_code == 0
    assert "created     out/tiny/op.py" in first.stdout
    assert re.search(r"1 package in out: \d+ created", first.stdout)
    assert invoke("generate", TINY, "--out", "out").stdout == "1 package in out is current\n"
    assert invoke("generate", TINY, "--out", "out", "--check").exit_code == 0
    assert invoke("generate", TINY, "--out", "out", "--diff").exit_code == 0


def test_check_lists_each_kind_and_the_command_that_mends_it(here: Path) -> None:
    name = TINY.read_text(encoding="utf-8").replace("name: tiny", "name: second")
    (here / "second.yaml").write_text(name, encoding="utf-8")
    invoke("generate", "second.yaml", "--out", "out")
    (here / "second.yaml").write_text(name.replace("pages: 4", "pages: 5"), encoding="utf-8")
    (here / "out" / "second" / "op.py").unlink()
    (here / "out" / "second" / "old.py").write_text("", encoding="utf-8")
    (here / "out" / "second" / "checks.py").write_text("", encoding="utf-8")
    result = invoke("generate", "second.yaml", "--out", "out", "--check")
    assert_error(result, 1, "in out not as generated: 1 edited, 1 missing, 1 orphan", "")
    for kind, path in (("missing", "op.py"), ("orphan", "old.py"), ("edited", "checks.py"), ("stale", "constants.py")):
        assert f"{kind:<11} out/second/{path}\n" in result.stdout
    assert "next: vashista-gen generate second.yaml --out out --force\n" in result.stderr
    assert invoke("generate", "second.yaml", "--out", "out", "--force").exit_code == 0
    assert invoke("generate", "second.yaml", "--out", "out", "--check").exit_code == 0


def test_orphan_packages_are_found_when_no_spec_is_named(here: Path) -> None:
    (here / "extra.yaml").write_text(
        TINY.read_text(encoding="utf-8").replace("name: tiny", "name: extra"), encoding="utf-8"
    )
    invoke("generate", "--out", "out")
    invoke("generate", "extra.yaml", "--out", "out")
    result = invoke("generate", "--out", "out", "--check")
    assert_error(result, 1, "orphan", "vashista-gen generate --out out")
    assert "orphan      out/extra/op.py" in result.stdout
    assert "removed     out/extra/op.py" in invoke("generate", "--out", "out").stdout
    assert not (here / "out" / "extra").exists()


def test_generate_says_how_a_named_package_is_imported(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "extra.yaml").write_text(TINY.read_text(encoding="utf-8").replace("name: tiny", "name: extra"))
    first = invoke("generate", "extra.yaml", "--out", "out").stdout
    assert first.endswith("next: in Python, with out on sys.path: import extra as op\n")
    (here / "specs").mkdir()
    monkeypatch.setattr("vashista_gen.cli.generate.checkout_output", lambda: here / "generated")
    outside = invoke("generate", "extra.yaml").stdout
    assert "extra.yaml lies outside specs/" in outside
    assert outside.endswith("next: in Python, import vashista_gen.generated.extra as op\n")
    (here / "extra.yaml").rename(here / "specs" / "extra.yaml")
    (here / "generated" / "extra" / "op.py").unlink()
    assert "outside" not in invoke("generate", "specs/extra.yaml").stdout


def test_diff_prints_unified_diffs_and_writes_nothing(here: Path) -> None:
    invoke("generate", TINY, "--out", "out")
    path = here / "out" / "tiny" / "op.py"
    edited = path.read_text(encoding="utf-8") + "# [bold]mine[/bold]\n"
    path.write_text(edited, encoding="utf-8")
    result = invoke("generate", TINY, "--out", "out", "--diff")
    assert_error(result, 1, "1 edited", "vashista-gen generate")
    assert result.stdout.startswith("--- a/tiny/op.py\n+++ b/tiny/op.py\n@@ ")
    assert "-# [bold]mine[/bold]\n" in result.stdout
    assert path.read_text(encoding="utf-8") == edited


def test_an_edit_is_not_overwritten_unless_forced(here: Path) -> None:
    invoke("generate", TINY, "--out", "out")
    edited, gone = here / "out" / "tiny" / "op.py", here / "out" / "tiny" / "merge.py"
    (here / "out" / "tiny" / "checks.py").unlink()
    edited.write_text("mine\n", encoding="utf-8")
    gone.write_text("mine too\n", encoding="utf-8")
    result = invoke("generate", TINY, "--out", "out")
    assert_error(result, 1, "2 files in out edited by hand would be lost; nothing was written", "--force")
    assert "by hand     out/tiny/op.py" in result.stdout
    assert edited.read_text(encoding="utf-8") == "mine\n"
    assert not (here / "out" / "tiny" / "checks.py").exists()
    forced = invoke("generate", TINY, "--out", "out", "--force")
    assert forced.exit_code == 0
    assert "overwritten out/tiny/op.py" in forced.stdout
    assert not gone.exists()


def test_a_wrong_spec_writes_nothing(here: Path) -> None:
    result = invoke("generate", TINY, ROOT / "tests" / "invalid" / "r21_pages.yaml", "--out", "out")
    assert_error(result, 2, "1 problem in ", "specs/README.md")
    assert not (here / "out").exists()


def test_two_specs_of_one_name(here: Path) -> None:
    (here / "tiny.yaml").write_text(TINY.read_text(encoding="utf-8"), encoding="utf-8")
    assert_error(invoke("generate", TINY, "tiny.yaml", "--out", "out"), 2, "both give the package tiny", "rename")
    assert invoke("generate", TINY, TINY, "--out", "out").exit_code == 0


def test_without_a_checkout_out_is_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.vashista_gen, "__file__", str(here / "site-packages" / "vashista_gen" / "__init__.py"))
    with pytest.raises(UsageError, match="checkout"):
        sources.checkout_output()
    assert_error(invoke("generate", TINY), 2, "does not run from a checkout", "--out DIR")


def test_without_shipped_specs_those_here_are_taken(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise sources.MissingEnvironmentError("none", "reinstall")

    monkeypatch.setattr(spec, "specs_root", missing)
    assert_error(invoke("check"), 2, "no specs in specs", "vashista-gen check")
    (here / "specs").mkdir()
    (here / "specs" / "tiny.yaml").write_text(TINY.read_text(encoding="utf-8"), encoding="utf-8")
    assert invoke("check").stdout.startswith("ok    specs/tiny.yaml")


EXPLAINED = [*SHIPPED, *(ROOT / "tests" / "golden" / f"{name}.yaml" for name in ("hnd_box8", "certified"))]


@pytest.mark.parametrize("path", EXPLAINED, ids=lambda p: p.stem)
def test_explain_names_every_kernel(path: Path) -> None:
    result = invoke("explain", path)
    assert result.exit_code == 0
    plan = make_plan(spec.load(path))
    for kernel in plan.kernels:
        assert kernel in words.KERNELS
        assert re.search(rf"^ {kernel} ", result.stdout, re.MULTILINE)
    for target in plan.spec.targets:
        assert re.search(rf"^ {target} ", result.stdout, re.MULTILINE)
    assert "lower bound" in result.stdout or plan.spec.targets == ("c",)


LLAMA3 = """name: llama3
model: {num_q_heads: 32, num_kv_heads: 8, head_dim: 128}
cache: {page_size: 16}
routing: {pages: 64}
candidates: {tokens: 512, dense_below: 1024}
targets: [cuda-sm_90a, c]
"""


def test_explain_shows_the_numbers_of_the_formulas(here: Path) -> None:
    (here / "llama3.yaml").write_text(LLAMA3, encoding="utf-8")
    result = invoke("explain", "llama3.yaml", "--context", "4096,1M", "--batch", "2")
    assert "129 a token, 3.1% of the KV cache" in result.stdout
    # 16 MiB against 516 KiB, 2 and 1 MiB and the tables; 4 GiB against 129 + 3 MiB
    assert re.search(r"^ +4k +16\.0 MiB +3\.5 MiB +21\.9% +516 KiB +2\.0 MiB +1\.0 MiB ", result.stdout, re.MULTILINE)
    assert re.search(r"^ +1M +4\.0 GiB +132 MiB +3\.2% +129 MiB ", result.stdout, re.MULTILINE)
    assert "from a context of 1,025 tokens on" in result.stdout
    # two sequences: 32 MiB and 1 KiB each of table over 3350 GB/s
    assert re.search(r"^ +4k +32\.0 MiB +7\.0 MiB +10 us ", result.stdout, re.MULTILINE)
    assert re.search(r"cuda-sm_90a +64 +16 +<= 40\.2 KiB +<= 24\.5 KiB +227 KiB +H100", result.stdout)


SMALL = """name: small
model: {num_q_heads: 9, num_kv_heads: 3, head_dim: 64}
cache: {page_size: 16}
"""


def explained(here: Path, *lines: str) -> str:
    """What explain says of H 3, d 64, group 3, with the lines: for a context of 8k."""
    (here / "small.yaml").write_text(SMALL + "\n".join(lines) + "\n", encoding="utf-8")
    result = invoke("explain", "small.yaml", "--context", "8k")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_explain_of_a_refresh(here: Path) -> None:
    text = explained(here, "routing: {pages: 128, refresh: 4}", "candidates: {tokens: 1024}")
    assert "one of 4 steps chooses; the others keep its pages" in text
    for kernel, when in (("score_pages", "steps that route"), ("renew_pages", "steps that do not route")):
        assert re.search(rf"^ {kernel} +{when} ", text, re.MULTILINE)
    # a quarter of 195 KiB of means; keys of 128 pages are read to score their tokens
    assert re.search(r"^ +8k +6\.0 MiB +1\.2 MiB +19\.6% +48\.8 KiB +768 KiB +384 KiB +3\.5 KiB", text, re.MULTILINE)
    assert "mean of 4 steps: at 8k one that routes reads 1.3 MiB, one that keeps its pages 1.1 MiB" in text


def test_explain_of_a_proof(here: Path) -> None:
    lines = "routing: {pages: 128}", "sketch: {bits: 4}", "candidates: {tokens: 1024}", "certificate: {kind: rigorous}"
    text = explained(here, *lines)
    # 3 heads of 42 bytes, of 3 * 256; with means of 4 tokens (390 / 16) and 24 / 16 of radii
    assert "4-bit codes of its key (a scale for each page and channel)" in text
    assert "126 bytes a token and layer, 16.4% of the KV cache" in text
    assert "(24 bytes a page): 151.9 bytes a token, 19.8%" in text
    assert "with the largest logits by their sketches" in text
    assert "a proof." in text and "at most 0.1." in text and "keeps its result, and the flag says so" in text
    # 6 MiB; 195 KiB of means, 128 pages of 1920 bytes, twice 384 KiB, 3584 of tables; 512 pages of 2040
    assert re.search(
        r"^ +8k +6\.0 MiB +1\.2 MiB +19\.6% +195 KiB +240 KiB +384 KiB +384 KiB +3\.5 KiB +1,020 KiB",
        text,
        re.MULTILINE,
    )
    assert "computed when it is asked for: sparse is without it.\n" in text
    acting = explained(here, *lines, "fallback: dense")
    # the same and the 1,020 KiB
    assert re.search(r"^ +8k +6\.0 MiB +2\.2 MiB +36\.2% ", acting, re.MULTILINE)
    assert "computed in each step, since failures are acted on: sparse holds it.\n" in acting
    assert "are attended to in whole, on the device" in acting


def test_explain_of_audits_and_expansion(here: Path) -> None:
    audit = "certificate: {kind: estimate, tolerance: 0.02, every: 16, heads: 3, expand_pages: 300}"
    text = explained(here, "routing: {pages: 64}", audit, "fallback: expand")
    assert "promises nothing. A head is certified when the share left out, its leakage, is at most 0.02." in text
    assert "Audited at contexts that are multiples of 16: one of 3 KV heads in turn, 2.08% of all;" in text
    assert "twice the pages and tokens, up to 256 pages, then attended to in whole" in text
    assert "on average over steps 2.08% of it" in text


def test_explain_names_the_calibration(here: Path) -> None:
    layer = {"balance": [[1.0] * 32] * 3, "margin": 0.25}
    (here / "measured.json").write_text(json.dumps({"layers": [layer]}), encoding="utf-8")
    sketch = "sketch: {bits: 8, transform: hadamard, balance: measured.json}"
    text = explained(
        here, "routing: {pages: 64, summary: sketch}", sketch, "certificate: {kind: calibrated, margin: measured.json}"
    )
    assert "(after a Hadamard rotation, a scale for each token), balanced over RoPE pairs by measured.json" in text
    assert "the margin of measured.json: it covers as often as measured there, and proves nothing" in text
    assert "is summarised by" not in text and "summaries" not in text
    assert re.search(
        r"^ score_pages +each step +prepared queries, sketches of every page, block_table", text, re.MULTILINE
    )
    # 512 pages of 3 (1024 + 32), read again for the 64 routed ones
    assert re.search(r"^ +8k +6\.0 MiB +2\.5 MiB +\S+ +1\.7 MiB +384 KiB +384 KiB ", text, re.MULTILINE)


def test_explain_of_the_break_even(here: Path) -> None:
    assert "No device is tuned (vashista-gen tune)" in explained(here, "routing: {pages: 64}")
    assert "attend to all: up to 9,000 tokens, as the spec says" in explained(
        here, "routing: {pages: 64, dense_up_to: 9000}"
    )
    (here / "tuning").mkdir()
    entry = {"source": "0", "knobs": {"dense_up_to": [[1, 9000], [8, 2000]]}}
    (here / "tuning" / "small.json").write_text(json.dumps({"c, a CPU": entry}))
    text = explained(here, "routing: {pages: 64}")
    assert "as measured on c, a CPU: 9,000 tokens at batch 1, 2,000 tokens at batch 8; on other devices" in text
    assert "Tuned on" not in text
    solver = ("routing: {pages: 64}", "candidates: {tokens: 64}", "attention: {solver: frank_wolfe}")
    assert "Every step is routed" in explained(here, *solver)


def test_explain_of_tuned_kernels(here: Path) -> None:
    (here / "tuning").mkdir()
    kernels = {"c": {"values": {"tile_tokens": 64}}, "cuda-sm_90a": {"values": {"attend_warps": 8, "part_pages": 8}}}
    (here / "tuning" / "small.json").write_text(json.dumps({"kernels": kernels}))
    text = explained(here, "routing: {pages: 64}")
    assert "Tuned on c: tile_tokens 64." in text and "Tuned on cuda-sm_90a: attend_warps 8, part_pages 8." in text
    assert re.search(r"^ c +64 +16 ", text, re.MULTILINE)


def test_explain_of_budgets(here: Path) -> None:
    mass = explained(here, "routing: {pages: 64}", "candidates: {tokens: 512, mass: 0.98, min_tokens: 64}")
    assert "the fewest that reach 0.98 of their softmax mass, 64 to 512, with the largest logits" in mass
    assert "contexts up to 64 keep every token" in mass and "often reached by fewer tokens" in mass
    pages = explained(here, "routing: {pages: 64}", "candidates: {pages: 16}")
    assert (
        "the 16 pages whose tokens have most of the softmax mass by exact logits are attended to whole, 256 tokens"
        in pages
    )
    assert "No certificate: what the tokens left out weigh is not stated." in pages
    assert re.search(r"context +dense +sparse +share +summaries +token K +token V +tables *$", pages, re.MULTILINE)


def test_units() -> None:
    assert [size(n) for n in (0, 1023, 1024, 1536, 2**20, 150 * 2**20)] == [
        *("0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "150 MiB")
    ]
    assert [tokens(n) for n in (1, 1024, 3000, 2**20, 3 * 2**19)] == ["1", "1k", "3,000", "1M", "1,536k"]
    assert [microseconds(s) for s in (1.25e-6, 2.5e-3)] == ["1.25 us", "2,500 us"]


def test_build_without_tilelang_is_3(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(emit, "compare", lambda plans, out, whole: [])  # whether it is current is another test's matter
    monkeypatch.setitem(sys.modules, "tilelang", None)
    result = invoke("build", TINY, "--target", "c", "--out", "libraries")
    assert_error(result, 3, "TileLang is not there", "pip install tilelang")
    assert not (here / "libraries").exists()


def test_build_needs_a_package_that_is_current(here: Path) -> None:
    text = TINY.read_text(encoding="utf-8")
    (here / "tiny.yaml").write_text(text.replace("pages: 4", "pages: 5"), encoding="utf-8")
    assert_error(invoke("build", "tiny.yaml", "--target", "c"), 1, "package tiny", "vashista-gen generate tiny.yaml")
    (here / "nowhere.yaml").write_text(text.replace("name: tiny", "name: nowhere"), encoding="utf-8")
    assert_error(
        invoke("build", "nowhere.yaml", "--target", "c"), 2, "is not generated", "vashista-gen generate nowhere.yaml"
    )


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_build_compiles_for_c(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tilelang")
    monkeypatch.setattr(emit, "compare", lambda plans, out, whole: [])
    monkeypatch.setenv("CC", "no-such-compiler")
    assert_error(invoke("build", TINY, "--target", "c", "--out", "libraries"), 3, "no C compiler", "install gcc")
    assert not (here / "libraries").exists()
    monkeypatch.delenv("CC")
    result = invoke("build", TINY, "--target", "c", "--out", "libraries")
    assert result.exit_code == 0, result.output
    assert (here / "libraries" / "tiny" / "c" / "kernels.so").stat().st_size > 0
    assert [p.name for p in (here / "libraries" / "tiny").iterdir()] == ["c"]


def test_build_says_where_and_how_to_use(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from vashista_gen.generated.tiny import library

    monkeypatch.setattr(emit, "compare", lambda plans, out, whole: [])
    monkeypatch.setattr(library, "build", lambda target, directory: directory)
    result = invoke("build", TINY, "--target", "c", "--out", "libraries")
    assert result.exit_code == 0, result.output
    assert "built tiny for c: libraries/tiny/c\n" in result.stdout
    assert f"export VASHISTA_GEN_LIBRARIES={here / 'libraries'}\n" in result.stdout
    assert "compiling" in result.stderr


def test_doctor_lists_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VASHISTA_GEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels.so").write_bytes(b"x" * 2**20)
    result = invoke("doctor")
    for what in ("Python", "torch", "tilelang", "apache-tvm-ffi", "C compiler", "nvcc", "jinja2", "generated packages"):
        assert re.search(rf"^ (ok|no|missing) +{what}", result.stdout, re.MULTILINE), what
    assert f"{tmp_path / 'cache'}, 1.0 MiB" in result.stdout


def test_doctor_without_a_compiler_is_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    result = invoke("doctor")
    assert result.exit_code == 3
    assert "no-such-compiler: not found" in result.stdout
    assert re.search(r"^C compiler: next: apt-get install gcc", result.stdout, re.MULTILINE)


def test_doctor_without_a_package_is_3(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_ruff(name: str) -> str:
        if name == "ruff":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "tilelang" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_ruff)
    result = invoke("doctor")
    assert result.exit_code == 3
    assert "ruff: next: pip install ruff" in result.stdout
    assert re.search(r"tilelang: next: pip install tilelang==\d", result.stdout)


def test_doctor_names_packages_without_a_spec(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`vashista-gen generate` would remove them: not what someone who just made one wants to be told."""
    text = TINY.read_text(encoding="utf-8")
    for name in ("tiny", "extra"):
        (here / f"{name}.yaml").write_text(text.replace("name: tiny", f"name: {name}"), encoding="utf-8")
    invoke("generate", "tiny.yaml", "extra.yaml", "--out", "generated")
    monkeypatch.setattr("vashista_gen.cli.sources.checkout_output", lambda: here / "generated")
    monkeypatch.setattr("vashista_gen.cli.sources.shipped", lambda: [here / "tiny.yaml"])
    found = next(doctor._generated())
    assert found.found == "extra: no spec of this name in specs/"
    assert found.next.startswith("move its spec into specs/")


def test_doctor_with_drift_alone_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    drift = doctor.Finding("generated packages", "3 files differ", "vashista-gen generate")
    monkeypatch.setattr(doctor, "LOOKS", (lambda: iter([doctor.Finding("Python", "3"), drift]),))
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "generated packages: next: vashista-gen generate" in result.stdout


def test_doctor_with_all_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = doctor.Finding("nvcc", "not found", "install it", needed=False)
    monkeypatch.setattr(doctor, "LOOKS", (lambda: iter([optional]),))
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "nvcc (optional): next: install it" in result.stdout
