"""Data settings keep NeMo's names and defaults."""

from nemoalign.config.data import DataConfig


def test_defaults_are_nemo_s():
    data = DataConfig()
    tokens = data.chat_prompt_tokens
    assert (tokens.system_turn_start, tokens.turn_start, tokens.label_start) == (
        "\x00",
        "\x11",
        "\x12",
    )
    assert tokens.end_of_turn == tokens.end_of_name == "\n"
    rows = data.train_ds
    assert (rows.add_bos, rows.add_eos, rows.add_sep) == (False, True, False)
    assert rows.truncation_method == "right"
    assert rows.shuffle is False
    assert rows.file_path == data.validation_ds.file_path == ()
