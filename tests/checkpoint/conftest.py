"""Models shared by the tests of this room, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemoalign.checkpoint.convert import convert
from nemoalign.log import PlainReporter
from tests.checkpoint.models import save_llama


@pytest.fixture
def quiet() -> PlainReporter:
    return PlainReporter(quiet=True)


@pytest.fixture(scope="session")
def hf_llama(tmp_path_factory) -> Path:
    """A tiny llama as transformers saves it."""
    return save_llama(tmp_path_factory.mktemp("models") / "tiny-llama", num_key_value_heads=2)


@pytest.fixture(scope="session")
def nemo_llama(hf_llama) -> Path:
    """The same llama, converted by us."""
    target = hf_llama.with_name("tiny-llama.nemo")
    convert(hf_llama, target, reporter=PlainReporter(quiet=True))
    return target
