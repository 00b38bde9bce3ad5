import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nemoalign.data.chat import ChatRules, encode_chats, render_row, unwritten
from nemoalign.data.rows import ChatRow
from nemoalign.data.tokenizer import build_tokenizer
from nemoalign.errors import DataError
from tests.data.tiny import (
    CHATML,
    CHATML_MARKED,
    FORGETFUL,
    TALK,
    CharTokenizer,
    regions,
    save_hf_tokenizer,
)

TOOLS_MARKED = (
    "{% if tools %}{{ '<|im_start|>system\nTools:' }}{% for tool in tools %}{{ tool | tojson }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '<tool_call>' + (call['function'] | tojson) + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = TOOLS_MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
FOLDERS = {
    "plain": CHATML,
    "marked": CHATML_MARKED,
    "forgetful": FORGETFUL,
    "tools": TOOLS,
    "tools marked": TOOLS_MARKED,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {n: save_hf_tokenizer(tmp_path_factory.mktemp(n), t) for n, t in FOLDERS.items()}


@pytest.fixture(scope="module")
def tokenizers(folders):
    return {name: build_tokenizer(regions(folder), {}) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def transformers_tokenizer(folders):
    return AutoTokenizer.from_pretrained(folders["marked"])


def encode(messages, tokenizer, limit=512, *, tools=None, **rules):
    chat = render_row(ChatRow(messages, tools), tokenizer, rules.get("mask", "assistant"))
    return encode_chats([chat], tokenizer, ChatRules(limit, **rules))[0]


def trained_text(encoded, tokenizer):
    return tokenizer.decode(encoded.ids[encoded.loss_mask])


def truth(tokenizer, messages, tools=None):
    found = tokenizer.apply_chat_template(
        messages, tools=tools, return_assistant_tokens_mask=True, return_dict=True
    )
    return found["input_ids"], found["assistant_masks"]


words = st.text(st.sampled_from("ab 2+<|im_end|>?\n"), min_size=1, max_size=12).filter(str.strip)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=4)


@settings(max_examples=60)
@given(turns=turns, system=st.none() | words, name=st.sampled_from(["plain", "marked"]))
def test_answers_are_those_that_transformers_marks(
    tokenizers, transformers_tokenizer, turns, system, name
):
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    ids, mask = truth(transformers_tokenizer, messages)
    encoded = encode(messages, tokenizers[name])
    assert encoded.ids.tolist() == ids
    assert encoded.loss_mask.astype(int).tolist() == mask


@pytest.mark.parametrize("name", ["plain", "marked"])
def test_each_mask_trains_what_it_says(tokenizers, name):
    tokenizer = tokenizers[name]
    last = "  Four again, naïvely 😀<|im_end|>"
    assert trained_text(encode(TALK, tokenizer), tokenizer) == "It is four.<|im_end|>" + last
    assert trained_text(encode(TALK, tokenizer, mask="completion"), tokenizer) == last
    assert encode(TALK, tokenizer, mask="none").loss_mask.all()


@pytest.mark.parametrize("name", ["plain", "marked"])
@pytest.mark.parametrize("mask", ["assistant", "completion"])
def test_an_answer_that_comes_first_or_is_followed_is_found_too(tokenizers, name, mask):
    messages = [TALK[2], {"role": "user", "content": "Sure?"}]
    assert trained_text(encode(messages, tokenizers[name], mask=mask), tokenizers[name]).endswith(
        "It is four.<|im_end|>"
    )


def test_no_end_token_is_added_when_the_talk_ends_with_a_question(tokenizers):
    encoded = encode(TALK[:4], tokenizers["plain"])
    assert not encoded.loss_mask[-1]
    assert tokenizers["plain"].decode(encoded.ids).endswith("one?\n<|im_end|>\n")


def test_answers_of_a_template_that_forgets_thoughts_are_found(tokenizers):
    tokenizer = tokenizers["forgetful"]
    found = trained_text(encode(TALK, tokenizer), tokenizer)
    assert found == "It is four.<|im_end|><think>\n\n</think>\n\nFour again, naïvely 😀<|im_end|>"


def test_an_answer_that_looks_like_markup_is_found(tokenizers):
    answer = {"role": "assistant", "content": ">"}
    encoded = encode([TALK[1], answer, TALK[3], answer], tokenizers["forgetful"])
    found = trained_text(encoded, tokenizers["forgetful"])
    assert found == "><|im_end|><think>\n\n</think>\n\n><|im_end|>"


def test_an_answer_that_is_rewritten_is_refused_not_guessed(tokenizers):
    thought = {"role": "assistant", "content": "<think>hm</think>It is four."}
    messages = [TALK[1], thought, TALK[3], TALK[4]]
    with pytest.raises(DataError, match="rewrites the answer in message 1"):
        encode(messages, tokenizers["forgetful"])
    last = encode(messages, tokenizers["forgetful"], mask="completion")
    assert "Four again" in trained_text(last, tokenizers["forgetful"])


class Replaced(CharTokenizer):
    """A template that writes the question differently once there is an answer."""

    def render_chat(self, messages, *, add_generation_prompt, tools=None):
        return f"{len(messages)}" + super().render_chat(
            messages, add_generation_prompt=add_generation_prompt
        )


def test_a_prompt_that_is_rewritten_is_refused_not_guessed():
    with pytest.raises(DataError, match="what comes before message 2 differently"):
        encode(TALK, Replaced())


def test_a_template_without_an_end_token_gets_one_that_is_trained():
    encoded = encode(TALK[:3], CharTokenizer())
    assert encoded.ids[-1] == CharTokenizer.eos_id
    assert CharTokenizer().decode(encoded.ids[encoded.loss_mask][:-1]) == "It is four."
    without = encode(TALK[:3], CharTokenizer(), add_eos=False)
    assert without.ids.tolist() == encoded.ids[:-1].tolist()


def test_a_line_break_that_ends_an_answer_is_trained():
    class Lines(CharTokenizer):
        def render_chat(self, messages, *, add_generation_prompt, tools=None):
            text = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
            return text + "assistant: " * add_generation_prompt

    encoded = encode(TALK[:3], Lines(), add_eos=False)
    assert CharTokenizer().decode(encoded.ids[encoded.loss_mask]) == "It is four.\n"


def test_over_long_talks_are_cut_on_the_right(tokenizers):
    whole = encode(TALK, tokenizers["plain"])
    cut = encode(TALK, tokenizers["plain"], limit=40)
    assert cut.truncated
    assert not whole.truncated
    # The last id is only a label, so one more than the limit is kept.
    assert cut.ids.tolist() == whole.ids[:41].tolist()
    assert cut.loss_mask.tolist() == whole.loss_mask[:41].tolist()


LISTEN = {"name": "listen", "parameters": {"type": "object", "properties": {}}}
CALLED = [
    {"role": "user", "content": "What does it say?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "listen", "arguments": {}}}],
    },
    {"role": "tool", "content": "meow"},
    {"role": "assistant", "content": "It says meow."},
]


@pytest.mark.parametrize("name", ["tools", "tools marked"])
def test_calls_of_tools_are_answers_whether_the_template_marks_them_or_not(
    folders, tokenizers, name
):
    tools = [{"type": "function", "function": LISTEN}]
    marked = AutoTokenizer.from_pretrained(folders["tools marked"])
    ids, mask = truth(marked, CALLED, tools)
    encoded = encode(CALLED, tokenizers[name], tools=tools)
    assert encoded.ids.tolist() == ids
    assert encoded.loss_mask.astype(int).tolist() == mask
    assert "Tools:" in tokenizers[name].decode(encoded.ids)
    assert '<tool_call>{"name": "listen"' in trained_text(encoded, tokenizers[name])


def test_tools_that_a_template_does_not_write_are_noticed(tokenizers):
    asked, tools = CALLED[:1] + CALLED[3:], [{"type": "function", "function": LISTEN}]
    for name, messages, offered, found in (
        ("tools", CALLED, tools, None),
        ("plain", CALLED, None, "tool_calls"),
        ("plain", asked, tools, "tools"),
        ("plain", asked, None, None),
    ):
        assert unwritten(ChatRow(messages, offered), tokenizers[name]) == found
