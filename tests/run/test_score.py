"""Scoring: how attributes become one number, what is refused, and a file that appears whole."""

import json

import pytest
import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.errors import ConfigError, ConflictError
from nemoalign.log import PlainReporter
from nemoalign.run.score import score, weighted
from nemoalign.train.stopping import Requests
from tests.commands import tiny
from tests.config.merging import CHECKPOINT, CKPT

TALK = [{"role": "user", "content": "What does the cat say?"}, {"role": "assistant", "content": "a meow"}]  # fmt: skip


def test_attributes_become_one_number_by_their_weights() -> None:
    assert weighted([1.0, 2.0, 6.0], None) == 3.0
    assert weighted([1.0, 2.0, 6.0], (0.5, 0.25, 0.0)) == 1.0
    with pytest.raises(ConfigError, match="has 2 weights for 3 attributes"):
        weighted([1.0, 2.0, 3.0], (1.0, 1.0))


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({}, ConfigError, "-o scores.jsonl"),
        ({"exp_manager.explicit_log_dir": "there"}, ConflictError, "--overwrite"),
        ({"model.data.train_ds.file_path": ["rows.jsonl"]}, ConfigError, "Leave --data out"),
    ],
)
def test_what_cannot_be_written_is_refused_first(more, error, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("kept")
    given = {**CKPT, "model.rm.score_path": ["rows.jsonl"], **more}
    merged = merge_run("rm", Said(flags=given, environ={}), lambda _: CHECKPOINT)
    with pytest.raises(error, match=words):
        score(merged, PlainReporter(quiet=True), None)
    assert (tmp_path / "there").read_text() == "kept"


@pytest.mark.slow
def test_every_row_gets_transformers_scores_in_its_order(tmp_path) -> None:
    tiny.make_classifier(tmp_path / "rm", labels=3)
    model = LlamaForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    tiny.write_rows(tmp_path / "talks.jsonl", [{"messages": TALK}] * 3)
    texts = ["word " * count for count in (40, 2, 9)]
    tiny.write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    command = ["rm", "--ckpt", tmp_path / "rm", "--score", tmp_path / "talks.jsonl", "--score", tmp_path / "texts.jsonl", "--precision", "fp32", "--seq-len", 32]  # fmt: skip
    out = tmp_path / "scores.jsonl"
    said = tiny.quickly(*command, "--gbs", 4, "--mbs", 2, "--no-packing", "-o", out, talk=True)
    assert "1 answers are longer than --seq-len 32" in said
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    talk = tokenizer(tokenizer.apply_chat_template(TALK, tokenize=False))["input_ids"]
    read = [talk] * 3 + [[*tokenizer(text)["input_ids"], 2][:32] for text in texts]
    for line, tokens in zip(lines, read, strict=True):
        expected = model(torch.tensor([tokens])).logits[0].tolist()
        assert line["scores"] == pytest.approx(expected, abs=1e-5)
        assert line["tokens"] == len(tokens)
    assert [line["truncated"] for line in lines] == [False] * 3 + [True, False, False]
    assert [(line["file"][-11:], line["row"]) for line in lines[2:4]] == [("talks.jsonl", 3), ("texts.jsonl", 1)]  # fmt: skip
    assert not list(tmp_path.glob(".*unfinished"))


@pytest.mark.slow
def test_a_stop_leaves_no_file_and_says_so(tmp_path, monkeypatch) -> None:
    tiny.make_classifier(tmp_path / "rm")
    tiny.write_rows(tmp_path / "talks.jsonl", [{"messages": TALK}])
    monkeypatch.setattr(Requests, "pending", lambda _: [1.0, 0.0, 0.0])
    command = ["rm", "--ckpt", tmp_path / "rm", "--score", tmp_path / "talks.jsonl", "-o", tmp_path / "s.jsonl"]  # fmt: skip
    said = tiny.quickly(*command, talk=True, code=75)
    assert "while scoring; no file was written. The same command starts again." in said
    assert {path.name for path in tmp_path.iterdir()} == {"rm", "talks.jsonl"}
