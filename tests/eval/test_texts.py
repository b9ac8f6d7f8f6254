"""Texts of this machine: long, different, and named with source and licence."""

import pytest

from vashista_gen.errors import UsageError
from vashista_gen.eval import texts


def test_the_known_texts_are_long_and_different():
    found = {text.name: text.read() for text in texts.known()}
    held = {name: whole for name, whole in found.items() if whole is not None}
    # those of Python itself are always there
    assert sum(name.startswith("python reference") for name in held) == 3
    for name, whole in held.items():
        assert len(whole) > 75_000, name
        middle = whole[len(whole) // 2 :][:300]
        assert [other for other, text in held.items() if middle in text] == [name]
    assert all(text.source and text.licence for text in texts.known())


def test_texts_are_taken_in_order_and_cut():
    short, long = (texts.Text(n, n, "none", lambda n=n, k=k: n * k) for n, k in (("a", 5), ("b", 50)))
    absent = texts.Text("c", "c", "none", lambda: None)
    found = texts.encode([short, absent, long], list, 20, 1)
    assert [(text.name, ids) for text, ids in found] == [("b", ["b"] * 20)]
    with pytest.raises(UsageError) as error:
        texts.encode([short, absent, long], list, 20, 2)
    assert "2 documents of 20 tokens" in error.value.message
    assert "a: 5 tokens" in error.value.message and "c: not installed" in error.value.message
    assert "--text" in error.value.hint


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read .*binary"):
        texts.encode(texts.of_files([tmp_path / "binary"]), list, 1, 1)
    with pytest.raises(UsageError, match="cannot read .*absent"):
        texts.encode(texts.of_files([tmp_path / "absent"]), list, 1, 1)
