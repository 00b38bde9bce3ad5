import json

import pytest

from nemoalign.archive.files import Region
from nemoalign.data.tokenizer import build_tokenizer
from nemoalign.errors import SourceError
from tests.data.tiny import FIXTURES, region, regions, save_hf_tokenizer

SENTENCEPIECE = FIXTURES / "tokenizers" / "sentencepiece.model"


def test_hugging_face_files_are_found_under_hf_and_by_their_own_names(tmp_path):
    directory = save_hf_tokenizer(tmp_path)
    for prefix in ("hf/", ""):
        tokenizer = build_tokenizer(
            regions(directory, prefix), {"library": "huggingface", "type": "x/y"}
        )
        assert tokenizer.decode(tokenizer.encode("two plus two")) == "two plus two"


def test_a_nemo_value_is_looked_up_by_its_exact_name():
    name = "0123456789abcdef0123456789abcdef_tokenizer.model"
    settings = {"library": "sentencepiece", "model": f"nemo:{name}", "sentencepiece_legacy": False}
    assert build_tokenizer({name: region(SENTENCEPIECE)}, settings).vocab_size == 512


def test_a_name_from_before_hashes_and_the_other_key_are_accepted():
    settings = {"library": "sentencepiece", "tokenizer_model": "tokenizer.model"}
    assert build_tokenizer({"tokenizer.model": region(SENTENCEPIECE)}, settings).vocab_size == 512


@pytest.mark.parametrize(
    "value", ["nemo:../t.model", "/etc/passwd", "nemo:a/b.model", "c:t.model", "nemo:.."]
)
def test_a_value_that_is_a_path_is_refused(value):
    files = {"t.model": region(SENTENCEPIECE)}
    with pytest.raises(SourceError, match="bare file name"):
        build_tokenizer(files, {"library": "sentencepiece", "model": value})


def test_a_value_that_names_no_file_lists_those_there_are():
    with pytest.raises(SourceError, match=r"'gone\.model'.*other\.model"):
        build_tokenizer(
            {"other.model": region(SENTENCEPIECE)},
            {"library": "sentencepiece", "model": "nemo:gone.model"},
        )


def test_tiktoken_text_in_a_model_file_is_named(tmp_path):
    path = tmp_path / "t.model"
    path.write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(SourceError, match="tiktoken"):
        build_tokenizer(
            {"t.model": region(path)}, {"library": "sentencepiece", "model": "nemo:t.model"}
        )


@pytest.mark.parametrize("content", [b"", b"{}", b"\x0a\x05junk", bytes(200)])
def test_a_damaged_sentencepiece_model_is_named(tmp_path, content):
    path = tmp_path / "t.model"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="SentencePiece"):
        build_tokenizer(
            {"t.model": Region(path, 0, len(content))},
            {"library": "sentencepiece", "model": "t.model"},
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "no tokenizer"),
        ({"library": "huggingface", "type": "meta/x"}, "meta/x"),
        ({"library": "tiktoken", "vocab_file": "nemo:v.json"}, "tiktoken"),
        ({"library": "megatron", "type": "BertWordPieceCase"}, "BertWordPieceCase"),
        ({"library": "sentencepiece", "model": None}, "tokenizer.model"),
    ],
)
def test_what_cannot_be_built_says_how_to_embed_a_tokenizer(settings, words):
    with pytest.raises(SourceError, match=r"--tokenizer HF_DIR") as caught:
        build_tokenizer({}, settings)
    assert words in str(caught.value)


def test_an_older_hugging_face_folder_without_tokenizer_json_is_read(tmp_path):
    model = tmp_path / "tokenizer.model"
    model.write_bytes(SENTENCEPIECE.read_bytes())
    config = {
        "eos_token": {"content": "</s>"},
        "bos_token": "<s>",
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "added_tokens_decoder": {"1": {"content": "<s>"}, "2": {"content": "</s>"}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = build_tokenizer(
        regions(tmp_path, "hf/"), {"library": "sentencepiece", "model": "nemo:no"}
    )
    assert tokenizer.encode("</s>") == [2]
    rendered = tokenizer.render_chat(
        [{"role": "user", "content": "hi"}], add_generation_prompt=False
    )
    assert rendered == "<s>hi"
