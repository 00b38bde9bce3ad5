"""What is exported as chat template makes transformers feed what training fed, token for token."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.settings.chat_template import chat_template, held_template, installed
from nemoalign.checkpoint.targets.hf import write_hf
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.data.dataset import SftDataset
from nemoalign.data.encoder import SftSettings
from nemoalign.data.nemo_chat import TurnTokens
from nemoalign.data.tokenizer import build_tokenizer
from tests.checkpoint.models import FIXTURES
from tests.data.tiny import TALK, regions, save_hf_tokenizer, write_jsonl

NEMO_CHAT = {
    "system": "Be brief.",
    "mask": "User",
    "conversations": [
        {"from": "User", "value": "What is two plus two?"},
        {"from": "Assistant", "value": "It is four."},
        {"from": "User", "value": " And three plus one?\n"},
        {"from": "Assistant", "value": "Four again, naïvely 😀"},
    ],
}
AS_MESSAGES = [
    {"role": "system", "content": "Be brief."},
    *(
        {"role": turn["from"].lower(), "content": turn["value"]}
        for turn in NEMO_CHAT["conversations"]
    ),
]


@pytest.fixture(scope="module", params=["byte BPE", "SentencePiece"])
def held(request, tmp_path_factory):
    """Tokenizer files of a checkpoint with their section, and the directory export makes of them."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "byte BPE":
        files = regions(save_hf_tokenizer(folder, chat_template=None), "hf/")
        return files, {}, folder
    source = open_source(FIXTURES / "chatsft_tp1_file.nemo")
    export(source.path, folder / "hf", reporter=_Quiet())
    return source.files, source.config["tokenizer"], folder / "hf"


class _Quiet:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def progress(self, *_):
        from nemoalign.log import PlainReporter

        return PlainReporter(quiet=True).progress("", 0, "")


def trained(held, row, tmp_path, **settings) -> tuple[list[int], int]:
    """Return the ids a run feeds for a row, and where its last answer begins."""
    files, section, _ = held
    data = write_jsonl(tmp_path / "rows.jsonl", [row])
    rules = SftSettings(max_seq_length=500, **settings)
    sample = SftDataset([(data, 1.0)], build_tokenizer(files, section), rules)[0]
    return sample.tokens.tolist(), int(sample.loss_mask.argmax())


def transformers_reads(held, config, tmp_path):
    """Return transformers' tokenizer of the exported directory with our template in it."""
    template = chat_template({"data": config}, {}, "m.nemo")
    kept = {path.name: path.read_bytes() for path in held[2].iterdir() if path.is_file()}
    kept.pop("chat_template.jinja", None)
    (tmp_path / "out").mkdir()
    for name, content in installed(template, kept).items():
        (tmp_path / "out" / name).write_bytes(content)
    return AutoTokenizer.from_pretrained(tmp_path / "out"), template


def ids_of(tokenizer, messages, **options) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=False, **options)


@pytest.mark.parametrize(
    ("template", "settings"),
    [
        ("{input} {output}", {}),
        ("Say {input} in German\\u00df: {output}", {"add_bos": True}),
        ("User: {input}  Bot: {output}", {"add_eos": False}),
        ("{rules} User: {input} Bot: {output}", {}),
    ],
)
def test_prompt_rows_are_fed_as_they_were_trained(held, template, settings, tmp_path):
    row = {"rules": "Be kind. ", "input": " What is 2 + 2?", "output": "It's {four}. 😀"}
    ids, answer = trained(
        held, row, tmp_path, prompt_template=template, format="prompt-response", **settings
    )
    tokenizer, made = transformers_reads(
        held, {"chat": False, "train_ds": {"prompt_template": template, **settings}}, tmp_path
    )
    messages = [
        {"role": "user", "content": row["input"]},
        {"role": "assistant", "content": row["output"]},
    ]
    if "rules" in template:
        messages.insert(0, {"role": "system", "content": row["rules"]})
        assert made.notes == (
            "In its chat template a system message is {rules} and a question {input}.",
        )
    assert ids_of(tokenizer, messages) == ids
    assert ids_of(tokenizer, messages[:-1], add_generation_prompt=True) == ids[:answer]


@pytest.mark.parametrize("turns", [TurnTokens(), TurnTokens("<extra_id_0>", "<extra_id_1>")])
def test_nemos_turns_are_fed_as_they_were_trained(held, turns, tmp_path):
    ids, _ = trained(held, NEMO_CHAT, tmp_path, turns=turns)
    config = {"chat": True, "chat_prompt_tokens": vars(turns), "train_ds": {"prompt_template": "x"}}
    tokenizer, made = transformers_reads(held, config, tmp_path)
    assert made.notes == ()
    assert ids_of(tokenizer, AS_MESSAGES) == ids
    prompt = tokenizer.apply_chat_template(
        AS_MESSAGES[:-1], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith(f"{turns.turn_start}Assistant\n")
    with pytest.raises(Exception, match="without messages of tool"):
        ids_of(tokenizer, [*AS_MESSAGES, {"role": "tool", "content": "5"}])


def test_what_cannot_be_the_same_is_said():
    def made(template, **rules):
        return chat_template(
            {"data": {"train_ds": {"prompt_template": template, **rules}}}, {}, "m"
        )

    assert made("{text}").jinja is None
    assert "has 0 fields before the answer" in made("{text}").notes[0]
    assert made("{a} {b} {c} {d}").jinja is None
    assert "'\\nA:' begins without a space" in made("Q: {input}\\nA: {output}").notes[0]
    assert "add_sep" in made("{input} {output}", add_sep=True).notes[0]
    assert chat_template({}, {}, "m") is None


def test_a_tokenizers_own_template_stays_unless_the_run_trained_with_another(nemo_llama, tmp_path):
    quiet, source = _Quiet(), open_source(nemo_llama)
    write_hf(source, tmp_path / "same", WriteOptions(), quiet)
    assert held_template(open_source(tmp_path / "same").files, "") == "{{ messages }}"
    assert quiet.said == []
    for number, config in enumerate(
        (
            {"tokenizer": {"chat_template": "{{ bos_token }}"}},
            {"data": {"chat": False, "train_ds": {"prompt_template": "{input} {output}"}}},
        )
    ):
        write_hf(
            replace(source, config=source.config | config),
            tmp_path / f"other{number}", WriteOptions(), quiet,
        )  # fmt: skip
        assert "in place of the tokenizer's own" in quiet.said[-1]
        tokenizer_config = json.loads(
            (tmp_path / f"other{number}/tokenizer_config.json").read_text()
        )
        jinja = (tmp_path / f"other{number}/chat_template.jinja").read_text()
        assert tokenizer_config["chat_template"] == jinja != "{{ messages }}"
    convert(nemo_llama, tmp_path / "again.nemo", reporter=quiet)
    assert held_template(open_source(tmp_path / "again.nemo").files, "") == "{{ messages }}"


def test_the_talk_of_a_chat_template_is_not_touched(tmp_path):
    save_hf_tokenizer(tmp_path / "t")
    files = regions(tmp_path / "t", "hf/")
    found = chat_template({}, files, "m")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    theirs = ids_of(tokenizer, TALK)
    assert ids_of(tokenizer, TALK, chat_template=found.jinja) == theirs
    assert found.origin == "its tokenizer's files"
