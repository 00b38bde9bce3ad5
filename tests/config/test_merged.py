"""The tree of a merge, and writing it so that it repeats the run."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nemoalign.config.merged import escaped, flattened, nested
from tests.config.merging import CHECKPOINT, merge


def test_the_written_config_alone_repeats_the_run(tmp_path):
    flags = {
        "model.data.train_ds.file_path": ["a.jsonl:0.5", "b.jsonl"],
        "model.peft.lora_tuning.adapter_dim": "16",
        "trainer.sft.val_check_interval": "0.5",
        "trainer.max_time": "1-00:30:00",
        "exp_manager.explicit_log_dir": "run",
        "exp_manager.overwrite": True,
    }
    merged = merge(
        tmp_path,
        checkpoint=CHECKPOINT,
        flags=flags,
        sets=["model.data.train_ds.prompt_template={q}\\n{a}"],
    )
    text = merged.to_yaml()
    again = merge(tmp_path, [text], checkpoint=CHECKPOINT, flags={})
    assert again.config.exp_manager.overwrite is False
    assert again.to_yaml() == text
    assert again.tree["model"] == merged.tree["model"]
    assert again.warnings == merged.warnings == []


NAMES = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, TREES, max_size=3))
def test_flattening_and_nesting_are_inverse(tree):
    assert nested(flattened(tree)) == tree


def test_the_later_key_wins_where_a_value_stands_in_the_way():
    assert nested({"a": 1, "a.b": 2}) == {"a": {"b": 2}}


def test_escaped_text_holds_no_interpolation():
    assert escaped(["${x}", 3, "y"]) == ["\\${x}", 3, "y"]


def test_a_chosen_run_directory_is_in_config_tree_and_sources(tmp_path):
    merged = merge(tmp_path, checkpoint=CHECKPOINT).with_output(Path("runs/sft-3"))
    assert merged.config.exp_manager.explicit_log_dir == Path("runs/sft-3")
    assert merged.tree["exp_manager"]["explicit_log_dir"] == "runs/sft-3"
    assert merged.sources["exp_manager.explicit_log_dir"] == "default (the next free)"
    assert merged.row.name == "sft"
