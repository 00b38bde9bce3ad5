"""``generate`` has its own flags and few shared ones; what it lacks is named with what to type."""

import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.check import check_complete
from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.errors import ConfigError
from tests.config.merging import CHECKPOINT, CKPT


def test_its_flags_are_its_own_and_those_of_layout_and_output() -> None:
    flags = {entry.setting.flag: entry.key for entry in ALGORITHMS["generate"].flags()}
    assert flags["--data"] == "model.generate.prompts_path"
    assert flags["--temperature"] == "model.generate.temperature"
    assert {"--ckpt", "--tp", "--pp", "--seed", "--out"} <= flags.keys()
    assert not {"--lr", "--gbs", "--lora", "--val", "--epochs"} & flags.keys()
    sft = {entry.setting.flag: entry.key for entry in ALGORITHMS["sft"].flags()}
    assert sft["--data"] == "model.data.train_ds.file_path"


def test_something_to_answer_is_asked_for_and_nothing_to_learn_from() -> None:
    lacking = merge_run("generate", Said(flags=CKPT, environ={}), lambda _: CHECKPOINT)
    with pytest.raises(ConfigError, match=r'something to answer.*--prompt "Hello"'):
        check_complete(lacking.config, "generate")
    given = {**CKPT, "model.generate.prompt": ["Hello"]}
    asked = merge_run("generate", Said(flags=given, environ={}), lambda _: CHECKPOINT)
    check_complete(asked.config, "generate")
