"""tokenizer.json made of a SentencePiece model gives the ids SentencePiece gives, for any text."""

from __future__ import annotations

import io
import json
import random

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nemoalign.checkpoint.settings.sentencepiece_json import tokenizer_json
from tests.checkpoint.models import FIXTURES

TEXT = "the cat sat on a mat while 12 dogs, çà et là, ran 3.5 miles; über naïve café ﬁne Ａ １"
WORDS = TEXT.split(" ")
TRICKY = [
    "",
    " ",
    "  the  cat ",
    "the\ncat\t",
    "日本 cat",
    "🙂🙂",
    "naïve\u00a0ﬁne Ａ",
    "▁the",
    "a  b   c",
]
KINDS = {
    "bpe, bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 400},
    "bpe, as it is": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "vocab_size": 400,
    },
    "bpe, no first space": {"model_type": "bpe", "add_dummy_prefix": False, "vocab_size": 120},
    "unigram": {"model_type": "unigram", "vocab_size": 100},
    "unigram, bytes": {"model_type": "unigram", "byte_fallback": True, "vocab_size": 360},
}


def train(**options) -> bytes:
    draw = random.Random(0)
    made = ["".join(draw.choices(TEXT, k=6)) for _ in range(60)]
    lines = [" ".join(draw.choices(WORDS + made, k=8)) for _ in range(200)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, num_threads=1, minloglevel=2, **options
    )
    return model.getvalue()


@pytest.fixture(scope="module", params=KINDS.values(), ids=list(KINDS))
def pair(request):
    content = train(**request.param)
    fast = Tokenizer.from_str(json.dumps(tokenizer_json(content)))
    return sentencepiece.SentencePieceProcessor(model_proto=content), fast


def assert_same(pair, text):
    theirs, ours = pair
    ids = theirs.encode(text)
    assert ours.encode(text, add_special_tokens=False).ids == ids
    if theirs.unk_id() not in ids:  # SentencePiece spells it its own way
        assert ours.decode(ids) == theirs.decode(ids)


def test_any_text_becomes_the_same_ids(pair):
    draw = random.Random(1)
    made = [" ".join(draw.choices(WORDS + TRICKY, k=6)) for _ in range(200)]
    for text in TRICKY + made:
        assert_same(pair, text)


@pytest.fixture(scope="module")
def fixture_pair():
    content = (FIXTURES / "tokenizers" / "sentencepiece.model").read_bytes()
    fast = Tokenizer.from_str(json.dumps(tokenizer_json(content)))
    return sentencepiece.SentencePieceProcessor(model_proto=content), fast


@given(text=st.text(max_size=30).filter(lambda text: "<" not in text and "\0" not in text))
def test_any_unicode_becomes_the_same_ids(fixture_pair, text):
    theirs, ours = fixture_pair
    assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text)


def test_tokens_around_and_inside_a_text():
    content = train(**KINDS["bpe, bytes"], user_defined_symbols=["<mask>"])
    tree = tokenizer_json(content, ["<new>", "</s>", "<newer>", "<new>"], bos="<s>")
    fast = Tokenizer.from_str(json.dumps(tree))
    size = sentencepiece.SentencePieceProcessor(model_proto=content).get_piece_size()
    assert fast.get_vocab_size() == size + 2
    assert fast.encode("<new><newer></s><mask>").ids == [1, size, size + 1, 2, 3]
    assert fast.decode([size, 2], skip_special_tokens=True) == ""


@pytest.mark.parametrize("kind", ["bpe, bytes", "unigram, bytes", "bpe, no first space"])
def test_symbols_of_the_model_are_found_in_any_text(kind):
    content = train(**KINDS[kind], user_defined_symbols=["<extra_id_0>", "<extra_id_1>", "(?"])
    pair = (
        sentencepiece.SentencePieceProcessor(model_proto=content),
        Tokenizer.from_str(json.dumps(tokenizer_json(content))),
    )
    for text in (
        "<extra_id_0>the\ncat<extra_id_1>sat\n", "the <extra_id_1> cat", "the<extra_id_1><extra_id_1>",
        " <extra_id_0> cat", "a (? b <extra_id_2>", "the cat<extra_id_1>", "the\n<extra_id_0>\nthe",
    ):  # fmt: skip
        theirs, ours = pair
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text


@pytest.mark.parametrize("kind", ["char", "word"])
def test_other_kinds_of_models_have_no_such_form(kind):
    assert tokenizer_json(train(model_type=kind, vocab_size=30)) is None


def test_damaged_models_have_no_such_form():
    content = (FIXTURES / "tokenizers" / "sentencepiece.model").read_bytes()
    assert tokenizer_json(b"") is None
    assert tokenizer_json(content[:-1]) is None
    piece = b"\n\x03abc"
    assert tokenizer_json(b"\n" + bytes([len(piece)]) + piece) is not None
    assert tokenizer_json(b"\n\x02\x08\x01") is None
    long = b"\n\x80\x08" + b"a" * 1024
    assert tokenizer_json(b"\n\x83\x08" + long) is None
