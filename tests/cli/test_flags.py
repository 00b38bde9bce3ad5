"""Flags: the golden list, their names, what help says of them, and what typing one means."""

from collections import Counter
from pathlib import Path

import pytest

from nemoalign.cli import flags
from nemoalign.cli.app import COMMANDS
from nemoalign.cli.checkpoint import ConvertFlags
from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.errors import ConfigError

GOLDEN = Path(__file__).with_name("flags.golden")
ENTRIES = [e for e in ALGORITHMS["sft"].entries().values() if e.setting.flag]
by_flag = {e.setting.flag: e for e in ENTRIES}


def test_the_flags_are_those_that_were_reviewed():
    assert flags.golden(COMMANDS) == GOLDEN.read_text(), "after review: make flags"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_no_two_flags_share_a_name_and_none_is_long(command):
    names = [
        name
        for entry in command.entries
        for name in [entry.setting.short, *str(entry.setting.flag).split("/")]
        if name
    ]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert {"-h", "--help"}.isdisjoint(names)
    shown = [str(entry.setting.flag).partition("/")[0] for entry in command.entries]
    assert [name for name in shown if len(name) > 20 or not name.startswith("--")] == []
    assert all(entry.setting.help.strip() for entry in command.entries)


def test_help_ends_with_the_key_and_tells_the_default():
    for entry in ENTRIES:
        assert flags.help_text(entry).endswith(f" [{entry.key}]")
    texts = {name: flags.help_text(entry) for name, entry in by_flag.items()}
    assert "(default: 64)" in texts["--gbs"]
    assert "(default: cosine)" in texts["--schedule"]
    assert "(default: the checkpoint's)" in texts["--seq-len"]
    assert "(default: off)" in texts["--shuffle/--no-shuffle"]
    assert "default" not in texts["--ckpt"]


def test_only_what_was_typed_is_given():
    typed = {flags.parameter_name(entry): None for entry in ENTRIES}
    assert flags.given(ENTRIES, typed) == {}
    typed |= {"lr": "3e-4", "shuffle": False, "data": ["a", "b:2"], "lora_targets": ["mlp,all"]}
    assert flags.given(ENTRIES, typed) == {
        "model.optim.lr": "3e-4",
        "model.data.train_ds.shuffle": False,
        "model.data.train_ds.file_path": ["a", "b:2"],
        "model.peft.lora_tuning.target_modules": ["mlp", "all"],
    }


SAMPLES = {"N": "3", "X": "0.5", "TEXT": "word", "SRC": "m.nemo", "EVERY": "7", "RANK": "4"} | {
    "D-HH:MM:SS": "1-00:00:00",
    "RUN_DIR": "run",
    "FILE": "v.jsonl",
    "FILE[:WEIGHT]": "t.jsonl:0.5",
    "NAMES": "mlp",
    "PROJECT": "word",
}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.setting.flag)
def test_every_flag_reaches_the_config_under_its_key_with_its_source(entry):
    if entry.type is bool:
        value = not entry.default
    else:
        word = flags.metavar(entry)
        value = SAMPLES.get(word) or list(entry.setting.choices)[-1]
    typed = {flags.parameter_name(entry): [value] if flags.is_list(entry) else value}
    given = flags.given(ENTRIES, typed)
    if entry.key.startswith("model.peft") and "adapter_dim" not in entry.key:
        given["model.peft.lora_tuning.adapter_dim"] = "8"
    if entry.setting.flag == "--min-lr":
        given["model.optim.lr"] = "1"
    merged = merge_run("sft", Said(flags=given, environ={}))
    node = merged.tree
    for part in entry.key.split("."):
        node = node[part]
    assert merged.sources[entry.key] == f"flag {entry.setting.flag.partition('/')[0]}"
    assert str(node).strip("[']").lower() in (
        str(value).lower(),
        str(entry.setting.choices and entry.setting.choices.get(value)).lower(),
    )


def test_the_flags_of_a_command_are_read_into_its_dataclass():
    known = flags.read(ConvertFlags, {"out": "m.nemo", "dtype": "bf16", "overwrite": True})
    assert (str(known.out), known.dtype, known.overwrite) == ("m.nemo", "bf16", True)
    assert (known.verify, known.tokenizer, known.json) == ("hash", None, False)
    with pytest.raises(ConfigError, match="-o DST is missing"):
        flags.read(ConvertFlags, {})
    with pytest.raises(ConfigError, match="--verify x does not work: it must be one of none, hash"):
        flags.read(ConvertFlags, {"out": "m.nemo", "verify": "x"})
