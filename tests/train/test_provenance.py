import yaml

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.data.tokenizer_hf import load_hf
from nemoalign.train.inputs import read_inputs
from nemoalign.train.provenance import run_config_yaml
from tests.commands import tiny

CHECKPOINT = {
    "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4,
    "encoder_seq_length": 128, "something_of_nemos": {"kept": 1.0e-5}, "optim": {"lr": 7.0},
    "tokenizer": {"library": "huggingface"}, "restore_from_path": "/elsewhere",
}  # fmt: skip


def _written(tmp_path, rows, **flags):
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    flags |= {
        "model.data.train_ds.file_path": [str(data)],
        "model.global_batch_size": 4,
        "pretrained_checkpoint.restore_from_path": "base.nemo",
    }
    merged = merge_run("sft", Said(flags=flags, environ={}), lambda path: CHECKPOINT)
    tiny.make_tokenizer().save_pretrained(tmp_path / "t")
    files = {path.name: path.read_bytes() for path in (tmp_path / "t").iterdir()}
    tokenizer = load_hf(files, {})
    return yaml.safe_load(run_config_yaml(merged, read_inputs(merged.config, tokenizer), tokenizer))


def test_unread_fields_travel_and_training_fields_are_this_runs(tmp_path) -> None:
    config = _written(tmp_path, tiny.rows(8, seed=1), **{"model.optim.lr": 3e-4})
    assert config["something_of_nemos"] == {"kept": 1e-5}
    assert config["num_layers"] == 2
    assert config["optim"]["lr"] == 3e-4
    assert config["nemoalign"]["algorithm"] == "sft"
    assert config["nemoalign"]["from"] == "base.nemo"
    assert "restore_from_path" not in config


def test_the_prompt_template_goes_where_nemo_keeps_it(tmp_path) -> None:
    template = "Q: {input}\nA: {output}"
    flags = {"model.data.train_ds.prompt_template": template}
    config = _written(tmp_path, tiny.rows(8, seed=1), **flags)
    assert config["data"]["train_ds"]["prompt_template"] == template


def test_conversations_keep_their_chat_template(tmp_path) -> None:
    config = _written(tmp_path, [tiny.as_messages(row) for row in tiny.rows(8, seed=1)])
    assert config["data"]["chat"] is True
    assert config["tokenizer"] == {"library": "huggingface", "chat_template": tiny.CHATML}


def test_what_a_checkpoint_said_of_prompts_is_over_when_the_run_wrote_them_otherwise(
    tmp_path, monkeypatch
) -> None:
    turns = {"turn_start": "<extra_id_1>"}
    before = {"chat": True, "chat_prompt_tokens": turns, "train_ds": {"prompt_template": "{x}"}}
    monkeypatch.setitem(CHECKPOINT, "data", {**before, "seq_length": 128})
    template = {"model.data.train_ds.prompt_template": "{input} {output}"}
    data = _written(tmp_path, tiny.rows(8, seed=1), **template)["data"]
    assert data == {
        "chat": False,
        "seq_length": 128,
        "train_ds": {
            "prompt_template": "{input} {output}", "label_key": "output",
            "add_bos": False, "add_eos": True, "add_sep": False,
        },
    }  # fmt: skip


def test_an_adapter_names_its_base(tmp_path) -> None:
    flags = {"model.peft.lora_tuning.adapter_dim": 8, "model.peft.peft_scheme": "lora"}
    config = _written(tmp_path, tiny.rows(8, seed=1), **flags)
    assert config["restore_from_path"] == "base.nemo"
    assert config["peft"]["lora_tuning"]["adapter_dim"] == 8
