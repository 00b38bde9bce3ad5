import pytest
import sentencepiece

from nemoalign.data.tokenizer_sentencepiece import SentencePieceTokenizer
from nemoalign.errors import SourceError
from tests.data.tiny import FIXTURES, TALK

PATH = FIXTURES / "tokenizers" / "sentencepiece.model"
TEXTS = ["Hello there", "a\nb <extra_id_1>User", "wörld 😀", "", "</s> is text here"]


@pytest.fixture(scope="module")
def model():
    return PATH.read_bytes()


@pytest.fixture(scope="module")
def reference():
    return sentencepiece.SentencePieceProcessor(model_file=str(PATH))


def test_ids_are_sentencepieces_own(model, reference):
    tokenizer = SentencePieceTokenizer.from_nemo(model, {"sentencepiece_legacy": False})
    assert tokenizer.encode_batch(TEXTS) == [reference.encode(text) for text in TEXTS]
    assert [list(e.ids) for e in tokenizer.encode_spans(TEXTS)] == tokenizer.encode_batch(TEXTS)
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(TEXTS)] == TEXTS


def test_facts_are_the_models_and_padding_falls_back_to_the_end_token(model, reference):
    tokenizer = SentencePieceTokenizer.from_nemo(model, {})
    assert (tokenizer.bos_id, tokenizer.eos_id) == (reference.bos_id(), reference.eos_id())
    assert reference.pad_id() == -1
    assert tokenizer.pad_id == tokenizer.eos_id
    assert not tokenizer.space_sensitive


def test_legacy_tokens_are_numbered_from_the_models_size_unless_it_has_them(model, reference):
    settings = {
        "special_tokens": {"eos_token": "<END>", "other": "<extra_id_0>"},
        "additional_special_tokens": ["<MORE>"],
    }
    tokenizer = SentencePieceTokenizer.from_nemo(model, settings)
    assert tokenizer.vocab_size == 514
    assert tokenizer.eos_id == 512
    ids = tokenizer.encode("Hello<END>there<extra_id_0><MORE>")
    piece = reference.piece_to_id("<extra_id_0>")
    assert ids == [*reference.encode("Hello"), 512, *reference.encode("there"), piece, 513]
    assert tokenizer.decode(ids) == "Hello<END>there<extra_id_0><MORE>"


def test_spans_of_special_tokens_and_of_text_between_them_fit_the_text(model):
    tokenizer = SentencePieceTokenizer.from_nemo(model, {"special_tokens": ["<END>"]})
    text = "Hi<END>you<END>"
    encoding = tokenizer.encode_spans([text])[0]
    assert [
        text[a:b] for t, (a, b) in zip(encoding.ids, encoding.spans, strict=True) if t == 512
    ] == ["<END>"] * 2
    assert "".join(text[a:b] for a, b in encoding.spans) == text


def test_the_lone_space_piece_after_a_special_token_is_dropped(model, reference):
    tokenizer = SentencePieceTokenizer.from_nemo(model, {"special_tokens": ["<END>"]})
    assert reference.encode("User", out_type=str)[0] == "▁"
    assert tokenizer.encode("<END>User") == [512, *reference.encode("User")[1:]]


def test_added_tokens_without_legacy_are_refused(model):
    with pytest.raises(SourceError, match="sentencepiece_legacy"):
        SentencePieceTokenizer.from_nemo(
            model, {"special_tokens": ["<END>"], "sentencepiece_legacy": False}
        )


def test_a_nemo_chat_template_renders_with_the_models_own_tokens(model):
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}{{ eos_token }}{% endfor %}"
    tokenizer = SentencePieceTokenizer.from_nemo(model, {"chat_template": template})
    rendered = tokenizer.render_chat(TALK[:2], add_generation_prompt=False)
    assert rendered == "<s>system</s>user</s>"
