"""What a person is shown of a checkpoint, line by line."""

import pytest

from nemoalign.checkpoint.inspect import inspect
from nemoalign.cli.report import model_rows, vit_rows
from tests.checkpoint.models import FIXTURES


def rows_of(name):
    report = inspect(FIXTURES / name)
    return dict((vit_rows if report["family"] == "vit" else model_rows)(report))


def test_an_adapter_says_what_it_adapts():
    assert rows_of("lora_tp1.nemo")["adapter"] == "LoRA rank 8, alpha 8, on all; base base.nemo"


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("chatsft_tp1_file.nemo", "chat", "NeMo's turns; --template prints it"),
        ("mixtral_tp2_ranks", "experts", "4, of which a token goes to 2"),
        ("gpt_tp2pp2_ranks.nemo", "vocabulary", "519 in 768 rows, output tied to input"),
        ("vit_tp1.nemo", "family", "vit / ViTForImageClassification"),
    ],
)
def test_what_stands_in_a_line(name, row, words):
    assert rows_of(name)[row] == words


def test_only_the_template_in_force_is_shown():
    assert "prompt" not in rows_of("chatsft_tp1_file.nemo")
