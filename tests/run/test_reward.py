"""Whose head a reward model gets, and of how many outputs."""

from types import SimpleNamespace

import pytest

from nemoalign.config.peft import Peft
from nemoalign.config.reward import RmSettings
from nemoalign.errors import ConfigError
from nemoalign.log import PlainReporter
from nemoalign.run.reward import reward_model
from tests.model import tiny

QUIET = PlainReporter(quiet=True)


def made(own: RmSettings, attributes: tuple[str, ...] | None, held: int = 0):
    model = tiny.llama(layers=1)
    arch = tiny.architecture(model.config)
    held_arch = tiny.architecture(model.config, num_attributes=held)
    arrays = tiny.weights(model, arch)
    if held:
        arrays["rm_head.weight"] = arrays["embedding.word_embeddings.weight"][:held]
        arrays["rm_head.bias"] = arrays["embedding.word_embeddings.weight"][:held, 0]
    source = SimpleNamespace(path="m.nemo", arch=held_arch, weights=tiny.Store(arrays))
    config = SimpleNamespace(model=SimpleNamespace(algorithm=own, seed=1, peft=Peft()))
    rows = None if attributes is None else SimpleNamespace(attributes=attributes)
    inputs = SimpleNamespace(any_rows=rows)
    arch, weights = reward_model(config, arch, source, inputs, QUIET)
    kept = (weights.read("rm_head.weight") == arrays.get("rm_head.weight", None)).all() if held else False  # fmt: skip
    return arch.num_attributes, bool(kept)


@pytest.mark.parametrize(
    ("settings", "attributes", "held", "expected"),
    [
        ({}, (), 0, (1, False)),
        ({}, (), 1, (1, True)),
        ({"load_rm_head_weights": False}, (), 1, (1, False)),
        ({"reward_model_type": "regression"}, ("a", "b"), 0, (2, False)),
        ({"reward_model_type": "regression"}, ("a", "b"), 2, (2, True)),
        ({"reward_model_type": "regression", "num_attributes": 9}, (), 0, (9, False)),
        ({"reward_model_type": "regression"}, None, 5, (5, True)),
    ],
)
def test_rows_settings_and_checkpoint_decide(settings, attributes, held, expected) -> None:
    assert made(RmSettings(**settings), attributes, held) == expected


@pytest.mark.parametrize(
    ("settings", "attributes", "held", "words"),
    [
        ({"load_rm_head_weights": True}, (), 0, "no reward head"),
        ({"score_path": ("rows.jsonl",)}, None, 0, "scores nothing"),
        ({}, (), 3, "a reward head of 3 outputs, and this run needs one of 1"),
        ({"reward_model_type": "regression", "num_attributes": 9}, ("a",), 0, "num_attributes=1"),
    ],
)
def test_what_does_not_fit_is_refused(settings, attributes, held, words) -> None:
    with pytest.raises(ConfigError, match=words):
        made(RmSettings(**settings), attributes, held)
