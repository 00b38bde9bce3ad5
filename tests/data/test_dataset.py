import numpy as np
import pytest

from nemoalign.data.dataset import SftDataset
from nemoalign.data.encoded import SAMPLED_ROWS, Storage
from nemoalign.data.encoder import SftSettings
from nemoalign.data.tokenizer import build_tokenizer
from nemoalign.errors import ConfigError, DataError
from tests.data.tiny import TALK, CharTokenizer, regions, save_hf_tokenizer, write_jsonl

ROWS = [{"input": f"question {n}?", "output": "x" * (n + 1)} for n in range(6)]


def dataset(tmp_path, rows, tokenizer=None, weight=1.0, storage=None, **settings):
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    chosen = SftSettings(**{"max_seq_length": 64, **settings})
    return SftDataset([(path, weight)], tokenizer or CharTokenizer(), chosen, storage=storage)


def texts(data):
    return [CharTokenizer().decode(data[n].tokens[:-1]) for n in range(len(data))]


def test_rows_come_in_file_order_with_their_place(tmp_path):
    data = dataset(tmp_path, ROWS)
    assert texts(data) == [f"question {n}? {'x' * (n + 1)}" for n in range(6)]
    assert [data[n].source for n in (0, 5)] == ["train.jsonl line 1", "train.jsonl line 6"]
    assert [data.length(n) for n in range(6)] == [len(data[n].tokens) - 1 for n in range(6)]


def test_the_template_is_the_users_then_the_checkpoints_then_nemos(tmp_path):
    mine, theirs = "A {input}B{output}", "C {input}D{output}"
    assert texts(dataset(tmp_path, ROWS[:1], prompt_template=mine, checkpoint_template=theirs)) == [
        "A question 0?Bx"
    ]
    assert texts(dataset(tmp_path, ROWS[:1], checkpoint_template=theirs)) == ["C question 0?Dx"]
    assert dataset(tmp_path, ROWS[:1]).template.text == "{input} {output}"


def test_mask_none_trains_the_prompt_too(tmp_path):
    assert dataset(tmp_path, ROWS, mask="none")[0].loss_mask.all()
    assert dataset(tmp_path, ROWS, mask="completion")[0].loss_mask.sum() == 3


def test_rows_of_a_large_file_are_those_of_a_small_one(tmp_path):
    rows = [{"input": f"question {n}?", "output": "x" * (n % 7 + 1)} for n in range(1200)]
    whole = dataset(tmp_path, rows)
    large = dataset(tmp_path, rows, storage=Storage(ahead_bytes=1000, cached_tokens=60))
    assert (whole.has_large, large.has_large, large.lengths) == (False, True, None)
    for n in (0, 1, 999, 1199, 0):
        assert whole.length(n) == large.length(n)
        assert whole[n].tokens.tolist() == large[n].tokens.tolist()
        assert whole[n].loss_mask.tolist() == large[n].loss_mask.tolist()
        assert whole[n].source == large[n].source == f"train.jsonl line {n + 1}"


def test_of_a_large_file_a_sample_is_read_and_said_to_be_one(tmp_path):
    rows = [{"input": f"question {n:04}?", "output": "yes"} for n in range(5000)]
    exact = dataset(tmp_path, rows).report().files[0]
    guess = dataset(tmp_path, rows, storage=Storage(ahead_bytes=1000)).report().files[0]
    assert (guess.rows, guess.tokens, guess.trained_tokens, guess.longest) == (
        exact.rows,
        exact.tokens,
        exact.trained_tokens,
        exact.longest,
    )
    assert guess.sampled == SAMPLED_ROWS
    assert guess.line(64).endswith("estimated from 1,000 rows")


def test_a_bad_row_of_a_large_file_is_named_when_it_is_used(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", ROWS[:1] * 3000)
    lines = path.read_text().splitlines()
    lines[150] = "{"
    path.write_text("\n".join(lines))
    settings = SftSettings(max_seq_length=64)
    with pytest.raises(DataError, match=r"train\.jsonl line 151 is not JSON"):
        SftDataset([(path, 1)], CharTokenizer(), settings)
    data = SftDataset([(path, 1)], CharTokenizer(), settings, storage=Storage(ahead_bytes=1000))
    assert data[149].tokens.tolist() == data[151].tokens.tolist()
    for ask in (data.length, data.__getitem__):
        with pytest.raises(DataError, match=r"train\.jsonl line 151 is not JSON"):
            ask(150)


def test_a_row_of_a_large_file_without_an_answer_left_trains_nothing_and_is_counted(tmp_path):
    rows = [*ROWS[:1] * 1500]
    rows[101] = {"input": "i" * 40, "output": "oo"}
    storage = Storage(ahead_bytes=1000)
    data = dataset(tmp_path, rows, max_seq_length=20, truncation_field="", storage=storage)
    assert (len(data), data.empty_rows) == (1500, 0)
    for _ in range(2):
        assert not data[101].loss_mask[1:].any()
    assert data.empty_rows == 1


def test_rows_without_an_answer_left_are_dropped_and_counted(tmp_path):
    rows = [{"input": "i" * 40, "output": "oo"}, *ROWS]
    data = dataset(tmp_path, rows, max_seq_length=20, truncation_field="")
    assert len(data) == len(ROWS)
    report = data.report()
    assert (report.rows, report.dropped, report.truncated) == (7, 1, 1)
    assert data[0].source == "train.jsonl line 2"


def test_the_report_counts_what_is_there(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [*ROWS, ROWS[0]])
    path.write_text("\n" + path.read_text())
    data = SftDataset([(path, 1)], CharTokenizer(), SftSettings(max_seq_length=64))
    report = data.report()
    assert (report.rows, report.duplicates, report.blank_lines) == (7, 1, 1)
    assert report.longest == max(len(data[n].tokens) for n in range(7)) - 1
    assert report.tokens == sum(len(data[n].tokens) - 1 for n in range(7))
    assert report.trained_tokens == sum(int(data[n].loss_mask.sum()) for n in range(7))
    assert report.files[0].schema == "prompt-response"


@pytest.mark.parametrize(
    ("weight", "wanted"),
    [(2, [0, 1, 2, 3, 4, 5] * 2), (0.5, [1, 3, 5]), (1.5, [0, 1, 2, 3, 4, 5, 1, 3, 5])],
)
def test_a_weight_says_how_often_rows_are_used(tmp_path, weight, wanted):
    found = [int(text.split()[1][0]) for text in texts(dataset(tmp_path, ROWS, weight=weight))]
    assert found == wanted


def test_files_may_have_different_schemas(tmp_path):
    tokenizer = build_tokenizer(regions(save_hf_tokenizer(tmp_path)), {})
    talk = write_jsonl(tmp_path / "talk.jsonl", [{"messages": TALK}])
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "two?", "completion": "four"}])
    data = SftDataset([(talk, 1), (rows, 1)], tokenizer, SftSettings(max_seq_length=256))
    assert [file.schema for file in data.report().files] == ["messages", "prompt-completion"]
    assert tokenizer.decode(data[0].tokens[data[0].loss_mask]).startswith("It is four.<|im_end|>")
    assert tokenizer.decode(data[1].tokens[data[1].loss_mask]) == " four<|im_end|>"


def test_the_missing_row_trains_nothing(tmp_path):
    filler = dataset(tmp_path, ROWS)[-1]
    assert filler.is_filler
    assert filler.tokens.tolist() == [1, 1]
    assert not filler.loss_mask.any()


def test_a_talk_the_template_refuses_is_named_with_its_line(tmp_path):
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}ok"
    tokenizer = build_tokenizer(regions(save_hf_tokenizer(tmp_path, template)), {})
    rows = [{"messages": TALK[1:3]}, {"messages": TALK}]
    with pytest.raises(DataError, match=r"train\.jsonl line 2: .*user first"):
        dataset(tmp_path, rows, tokenizer, mask="none")


def test_messages_without_a_chat_template_say_what_to_do(tmp_path):
    tokenizer = build_tokenizer(regions(save_hf_tokenizer(tmp_path, None)), {})
    with pytest.raises(DataError, match="no chat template"):
        dataset(tmp_path, [{"messages": TALK}], tokenizer)


def test_no_usable_row_is_an_error(tmp_path):
    rows = [{"input": "i" * 40, "output": "oo"}]
    with pytest.raises(
        DataError, match=r"No row of the train data .*1 dropped.*--seq-len \(now 20\)"
    ):
        dataset(tmp_path, rows, max_seq_length=20, truncation_field="")


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_must_be_positive(tmp_path, weight):
    with pytest.raises(ConfigError, match="no positive number"):
        dataset(tmp_path, ROWS, weight=weight)


def test_a_sequence_length_without_room_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--seq-len 4"):
        dataset(tmp_path, ROWS, max_seq_length=4)


def test_ids_are_small_and_masks_are_booleans(tmp_path):
    sample = dataset(tmp_path, ROWS)[0]
    assert (sample.tokens.dtype, sample.loss_mask.dtype) == (np.int32, np.bool_)
