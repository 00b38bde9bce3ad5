"""The real size of a vocabulary, against the libraries that own the formats."""

from __future__ import annotations

import json

import pytest
import sentencepiece
from tokenizers import Tokenizer

from nemoalign.archive.files import Region
from nemoalign.checkpoint.settings.vocabulary import (
    checked_vocabulary,
    fast_tokenizer_size,
    read_sentencepiece,
    real_vocabulary,
    tokenizer_size,
)
from nemoalign.errors import ContentError, SourceError
from tests.checkpoint.models import FIXTURES, tokenizer_json

MODEL = FIXTURES / "hf_llama/tokenizer.model"


def region(path):
    return Region(path, 0, path.stat().st_size)


def test_a_sentencepiece_model_is_read_as_its_library_reads_it():
    reference = sentencepiece.SentencePieceProcessor(str(MODEL))
    ours = read_sentencepiece(MODEL.read_bytes())
    assert list(ours.pieces) == [reference.id_to_piece(i) for i in range(reference.vocab_size())]
    ids = (reference.unk_id(), reference.bos_id(), reference.eos_id(), reference.pad_id())
    assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id) == ids


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 40, MODEL.read_bytes()[:1001]])
def test_what_is_no_sentencepiece_model_is_none(content):
    assert read_sentencepiece(content) is None


def test_a_fast_tokenizer_counts_its_added_tokens():
    added = [{"id": 70, "content": "<x>", "special": True}]
    added[0] |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content = json.dumps(tokenizer_json(61) | {"added_tokens": added}).encode()
    assert fast_tokenizer_size(content) == 71
    plain = json.dumps(tokenizer_json(61))
    plain = plain.replace('"type": "WordLevel"', '"type": "WordLevel", "unk_token": "w0"')
    assert fast_tokenizer_size(plain.encode()) == Tokenizer.from_str(plain).get_vocab_size()
    unigram = {"model": {"vocab": [["a", 0.0], ["b", -1.0]]}}
    assert fast_tokenizer_size(json.dumps(unigram).encode()) == 2
    assert fast_tokenizer_size(b"{}") is None


def test_special_tokens_are_appended_unless_they_are_there(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<s>": 1}))
    files = {"v": region(tmp_path / "vocab.json")}
    section = {"library": "megatron", "vocab_file": "nemo:v"}
    assert tokenizer_size(section, files) == 2
    assert tokenizer_size(section | {"special_tokens": {"bos": "<s>", "sep": "<sep>"}}, files) == 3
    more = {"special_tokens": ["<a>"], "additional_special_tokens": ["<b>", None]}
    assert tokenizer_size(section | more, files) == 4


def test_the_tokenizer_of_each_library_is_found():
    files = {"x_tokenizer.model": region(MODEL)}
    section = {"library": "sentencepiece", "model": "nemo:x_tokenizer.model"}
    assert tokenizer_size(section, files) == 512
    other = {"library": "megatron", "type": "GPTSentencePieceTokenizer", "tokenizer_model": "x"}
    assert tokenizer_size(other | {"tokenizer_model": "nemo:x_tokenizer.model"}, files) == 512
    assert tokenizer_size({"library": "huggingface", "type": "gpt2"}, files) is None
    assert tokenizer_size(section, {}) is None


def test_what_the_model_says_wins_over_what_its_tokenizer_holds():
    files = {"t": region(MODEL)}
    config = {"tokenizer": {"library": "sentencepiece", "model": "nemo:t"}}
    assert real_vocabulary(config, None, files) == 512
    assert real_vocabulary(config | {"override_vocab_size": 520}, None, files) == 520
    ours = config | {"override_vocab_size": 520, "nemoalign": {"vocab_size": 515}}
    assert real_vocabulary(ours, None, files) == 515
    assert real_vocabulary(ours, {"vocab_size": 513}, files) == 513
    assert real_vocabulary({}, None, {}) is None


def test_rows_are_the_last_resort_and_the_limit():
    assert checked_vocabulary(519, 640, "m") == (519, None)
    size, warning = checked_vocabulary(None, 640, "m.nemo")
    assert size == 640
    assert "convert m.nemo -o NEW.nemo --tokenizer" in warning
    with pytest.raises(ContentError, match="641 tokens but only 640 rows"):
        checked_vocabulary(641, 640, "m")


@pytest.mark.parametrize("content", ["[1]", "{", "\x00"])
def test_a_damaged_vocabulary_is_refused(content, tmp_path):
    (tmp_path / "vocab.json").write_text(content)
    section = {"library": "megatron", "vocab_file": "v"}
    with pytest.raises(SourceError, match="vocabulary is"):
        tokenizer_size(section, {"v": region(tmp_path / "vocab.json")})
