import json

import numpy as np
import pytest

from nemoalign.data.conversations import nemo_chat_row
from nemoalign.data.dataset import SftDataset
from nemoalign.data.encoder import SftSettings
from nemoalign.data.nemo_chat import TurnTokens, render_nemo_chat
from tests.data.tiny import VECTORS, CharTokenizer, write_jsonl

CHAT = json.loads((VECTORS / "sft.json").read_text())["chat"]
TURNS = TurnTokens(**CHAT["special_tokens"])


def trained(rendered):
    mask = np.zeros(len(rendered.text), int)
    for start, end in rendered.spans:
        mask[start:end] = 1
    return mask.tolist()


@pytest.mark.parametrize("name", CHAT["cases"])
def test_text_and_mask_are_those_of_nemo(name):
    case = CHAT["cases"][name]
    rendered = render_nemo_chat(nemo_chat_row(case["source"]), TURNS)
    assert rendered.text == case["text"]
    assert trained(rendered) == case["mask"]
    everything = render_nemo_chat(nemo_chat_row(case["source"]), TURNS, train_all=True)
    assert all(trained(everything))


@pytest.mark.parametrize("name", CHAT["cases"])
def test_ids_and_loss_mask_are_those_of_nemo(name, tmp_path):
    case = CHAT["cases"][name]
    path = write_jsonl(tmp_path / "chat.jsonl", [case["source"]])
    settings = SftSettings(max_seq_length=128, turns=TURNS, format="nemo-chat")
    data = SftDataset([(path, 1.0)], CharTokenizer(), settings)
    assert CharTokenizer().decode(data[0].tokens) == case["text"]
    assert data[0].loss_mask.astype(int).tolist() == case["mask"]
    assert (data.has_nemo_chat, data.has_chat, data.has_prompts) == (True, False, False)
