import json

import pytest
from transformers import AutoTokenizer

from nemoalign.data.tokenizer import build_tokenizer
from nemoalign.errors import SourceError
from tests.data.tiny import CHATML, FIXTURES, TALK, region, regions, save_hf_tokenizer

TEXTS = ["What is four?", " two  plus\n\n\ttwo ", "naïve 😀", "", "<|im_end|>x<|im_start|>"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_hf_tokenizer(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def ours(directory):
    return build_tokenizer(regions(directory), {})


@pytest.fixture(scope="module")
def theirs(directory):
    return AutoTokenizer.from_pretrained(directory)


def test_ids_and_spans_are_those_of_transformers(ours, theirs):
    wanted = theirs(TEXTS, add_special_tokens=False, return_offsets_mapping=True)
    assert ours.encode_batch(TEXTS) == wanted["input_ids"]
    assert [ours.encode(text) for text in TEXTS] == wanted["input_ids"]
    encodings = ours.encode_spans(TEXTS)
    assert [list(e.ids) for e in encodings] == wanted["input_ids"]
    assert [list(e.spans) for e in encodings] == wanted["offset_mapping"]


def test_facts_are_those_of_transformers(ours, theirs):
    assert (ours.vocab_size, ours.eos_id, ours.bos_id) == (len(theirs), 2, 1)
    assert ours.pad_id == ours.eos_id
    assert ours.space_sensitive
    assert ours.chat_template == CHATML


def test_decoding_spells_special_tokens_out(ours):
    assert ours.decode(ours.encode("two<|im_end|>")) == "two<|im_end|>"


@pytest.mark.parametrize("prompt", [False, True])
def test_chats_are_rendered_as_transformers_renders_them(ours, theirs, prompt):
    wanted = theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=prompt)
    assert ours.render_chat(TALK, add_generation_prompt=prompt) == wanted


def test_padding_and_truncation_saved_in_the_file_are_ignored(directory, tmp_path, ours):
    saved = json.loads((directory / "tokenizer.json").read_text())
    saved["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    assert build_tokenizer(regions(tmp_path), {}).encode_batch(TEXTS) == ours.encode_batch(TEXTS)


def test_code_and_paths_in_the_config_are_dropped(directory, tmp_path, ours):
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((directory / "tokenizer_config.json").read_text())
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    config["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    config["tokenizer_file"] = "/etc/hostname"
    config["tokenizer_class"] = "NobodyKnowsTokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert build_tokenizer(regions(tmp_path), {}).encode_batch(TEXTS) == ours.encode_batch(TEXTS)
    assert not marker.exists()


def test_tokens_that_nemo_adds_are_added(directory, ours):
    settings = {
        "library": "huggingface",
        "special_tokens": {"pad_token": "<pad>"},
        "additional_special_tokens": ["<extra_id_0>"],
        "chat_template": "{{ messages[0].content }}",
    }
    tokenizer = build_tokenizer(regions(directory, "hf/"), settings)
    assert tokenizer.vocab_size == ours.vocab_size + 2
    assert tokenizer.encode("<pad><extra_id_0>") == [ours.vocab_size, ours.vocab_size + 1]
    assert tokenizer.pad_id == ours.vocab_size
    assert tokenizer.render_chat(TALK, add_generation_prompt=True) == "Be brief."


def test_gpt2_vocabulary_and_merges_make_gpt2s_tokenizer(tmp_path):
    vocab = FIXTURES / "tokenizers" / "gpt2_vocab.json"
    merges = FIXTURES / "tokenizers" / "gpt2_merges.txt"
    files = {"1_vocab.json": region(vocab), "2_merges.txt": region(merges)}
    settings = {
        "library": "megatron",
        "type": "GPT2BPETokenizer",
        "vocab_file": "nemo:1_vocab.json",
        "merge_file": "nemo:2_merges.txt",
    }
    ours = build_tokenizer(files, settings)
    (tmp_path / "vocab.json").write_bytes(vocab.read_bytes())
    (tmp_path / "merges.txt").write_bytes(merges.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode_batch(TEXTS) == theirs(TEXTS, add_special_tokens=False)["input_ids"]
    assert (ours.vocab_size, ours.eos_id) == (519, 0)
    assert ours.space_sensitive


def test_damaged_files_are_one_sentence(directory, tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": 1')
    with pytest.raises(SourceError, match=r"tokenizer\.json cannot be loaded"):
        build_tokenizer(regions(tmp_path), {})
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(SourceError, match="is not JSON"):
        build_tokenizer(regions(tmp_path), {})


def test_a_tokenizer_without_an_end_token_is_refused(directory, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    with pytest.raises(SourceError, match="eos_token"):
        build_tokenizer(regions(tmp_path), {})
