"""The rules as tests: ``VIDVQ_TOKENIZER=module:Class pytest --pyargs vidvq.conformance``."""

import os

import pytest

from vidvq.conformance.rules import RULES, Rule
from vidvq.formats.checkpoint import resolve_checkpoint
from vidvq.model import Tokenizer
from vidvq.pretrained import load_tokenizer

_VARIABLE = "VIDVQ_TOKENIZER"


def _load() -> Tokenizer:
    name = os.environ.get(_VARIABLE)
    if not name:
        pytest.fail(f"set {_VARIABLE} to a checkpoint, bundled, module:Class, file.py:Class or an installed tokenizer")
    return load_tokenizer(resolve_checkpoint(name))[0]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The tokenizer that the environment names."""
    return _load()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule(rule: Rule, tokenizer: Tokenizer) -> None:
    """A rule holds; skipped if it does not apply."""
    if not rule.applies(tokenizer, _load):
        pytest.skip("the tokenizer does not support streaming")
    broken = rule.broken_by(tokenizer, _load)
    assert broken is None, f"{rule.text} {broken}"
