import json

import pytest

from nemoalign.data.templates import (
    DEFAULT_TEMPLATE,
    PromptTemplate,
    RowRules,
    encode_prompts,
    template_of,
)
from nemoalign.errors import ConfigError
from tests.data.tiny import VECTORS, CharTokenizer

NEMO = json.loads((VECTORS / "sft.json").read_text())["prompt_response"]


@pytest.mark.parametrize("case", NEMO["cases"], ids=lambda case: json.dumps(case["config"]))
def test_ids_and_masks_are_nemos(case):
    config = dict(case["config"])
    fields = config.pop("truncation_fields", None)
    text = config.pop("prompt_template", DEFAULT_TEMPLATE)
    template = PromptTemplate.parse(text, "output", None if fields is None else ",".join(fields))
    row = {**NEMO["example"], "extra": NEMO["extra"]}
    rules = RowRules(**{"max_seq_length": 512, **config})
    encoded = encode_prompts([row], template, CharTokenizer(), rules)[0]
    assert encoded.ids.tolist() == case["input_ids"]
    assert encoded.loss_mask.astype(int).tolist() == case["loss_mask"]
    assert encoded.truncated == ("max_seq_length" in config)


def pieces_of(text, space_sensitive):
    return [a + f"<{b}>" if b else a for a, b in PromptTemplate.parse(text).pieces(space_sensitive)]


def test_pieces_keep_their_spaces_or_lose_one_as_nemo_documents_it():
    text = "Context:  {context} Question: {question} Answer: {label}"
    assert pieces_of(text, True) == [
        "Context:", "  <context>", " Question:", " <question>", " Answer:", " <label>",
    ]  # fmt: skip
    assert pieces_of(text, False) == [
        "Context:", " <context>", "Question:", "<question>", "Answer:", "<label>",
    ]  # fmt: skip


def test_typed_escapes_are_characters_and_other_letters_stay():
    parsed = PromptTemplate.parse(r"Frage:\t{input}\nGrüße \x41\u00e9 \frac{output}")
    assert parsed.text == "Frage:\t{input}\nGrüße Aé \\frac{output}"


def test_values_lose_outer_spaces_only_and_may_hold_braces():
    template = PromptTemplate.parse("{input}|{output}")
    rows = [{"input": "  {output}\n ", "output": " b "}]
    encoded = encode_prompts(rows, template, CharTokenizer(), RowRules(max_seq_length=99))[0]
    assert CharTokenizer().decode(encoded.ids[:-1]) == "{output}\n|b"


def test_uneven_shares_take_one_token_more_from_the_first_fields():
    # Follows NeMo's code: its list of shares is built backwards and read from the end.
    template = PromptTemplate.parse("{a}{b}{c}{output}", truncation_field="a,b,c")
    row = {"a": "a" * 9, "b": "b" * 9, "c": "c" * 9, "output": "o"}
    rules = RowRules(max_seq_length=29 - 11)
    text = CharTokenizer().decode(
        encode_prompts([row], template, CharTokenizer(), rules)[0].ids[:-1]
    )
    assert text == "a" * 5 + "b" * 5 + "c" * 6 + "o"


def test_an_answer_cut_to_nothing_trains_nothing():
    template = PromptTemplate.parse("{input} {output}", truncation_field="")
    row = {"input": "i" * 30, "output": "oo"}
    encoded = encode_prompts([row], template, CharTokenizer(), RowRules(max_seq_length=10))[0]
    assert len(encoded.ids) == 10
    assert not encoded.loss_mask.any()


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("no fields", {}, "names no fields"),
        ("{} {output}", {}, "an empty one"),
        ("{input} {output}.", {}, r"must end with .*\{output\}"),
        ("{input} {output}", {"label_key": "answer"}, r"\{answer\}.*label_key=output"),
        ("{input} {output}", {"truncation_field": "text"}, "'text'.*truncation_field=input,output"),
    ],
)
def test_a_template_that_makes_no_sense_says_what_to_set(text, more, words):
    with pytest.raises(ConfigError, match=words):
        PromptTemplate.parse(text, **more)


def test_the_field_to_shorten_follows_from_the_template():
    assert PromptTemplate.parse("{a} {input} {o}").truncation_fields == ("input",)
    assert PromptTemplate.parse("{a} {b} {o}").truncation_fields == ("a",)
    assert PromptTemplate.parse("{o}").truncation_fields == ()
    assert PromptTemplate.parse("{a} {b} {o}", truncation_field="b, a").truncation_fields == (
        "b",
        "a",
    )


def test_a_missing_beginning_token_is_named():
    tokenizer = CharTokenizer()
    tokenizer.bos_id = None
    template = PromptTemplate.parse(DEFAULT_TEMPLATE)
    with pytest.raises(ConfigError, match="add_bos=false"):
        encode_prompts(
            [{"input": "i", "output": "o"}],
            template,
            tokenizer,
            RowRules(max_seq_length=9, add_bos=True),
        )


def test_a_checkpoints_template_is_found_where_nemo_puts_it():
    assert template_of({"data": {"train_ds": {"prompt_template": "{a} {b}"}}}) == "{a} {b}"
    assert template_of({"data": {"prompt_template": "{a} {b}"}}) == "{a} {b}"
    assert template_of({"data": {"train_ds": None}}) is None
    assert template_of({}) is None
