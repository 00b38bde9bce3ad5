"""Which prompts a step asks, and which a measurement: all of them on every rank, none twice an epoch."""

import pytest

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.data.tokenizer_hf import load_hf
from nemoalign.errors import DataError
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.inputs import make_feeds, packing_report, read_inputs, rows_of_step
from tests.commands import tiny

ONE = ParallelLayout(1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.make_tokenizer().save_pretrained(folder)
    return load_hf({path.name: path.read_bytes() for path in folder.iterdir()}, {})


def config_of(tmp_path, *, rows=10, val=(), sets=(), **own):
    """A run on so many prompts, 3 of them a step, measured on files of other counts."""
    data = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(rows, seed=1))
    files = [
        tiny.write_rows(tmp_path / f"val{n}.jsonl", tiny.rows(count, seed=9 + n))
        for n, count in enumerate(val)
    ]
    own = {"num_rollout_samples": 6, "group": 2, "reward": ["a:f"], **own}
    keys = {
        "model.data.train_ds.file_path": [str(data)],
        **({"model.data.validation_ds.file_path": [str(file) for file in files]} if val else {}),
        **{f"model.ppo.{name}": value for name, value in own.items()},
    }
    return merge_run("ppo", Said(flags=keys, sets=sets, environ={})).config


def feeds_of(tmp_path, tokenizer, layout=ONE, rank=0, **options):
    config = config_of(tmp_path, **options)
    return make_feeds(read_inputs(config, tokenizer), config, layout, rank, 2)


def test_every_rank_asks_all_prompts_of_a_step(tmp_path, tokenizer) -> None:
    (one,) = feeds_of(tmp_path, tokenizer).train.step(3)
    assert one.consumed == 3
    assert len(one.questions) == 3
    for rank in (0, 1):
        (other,) = feeds_of(tmp_path, tokenizer, ParallelLayout(2), rank).train.step(3)
        assert other == one


def test_an_epoch_asks_no_prompt_twice_and_the_next_in_another_order(tmp_path, tokenizer) -> None:
    config = config_of(tmp_path, rows=9, sets=["model.data.train_ds.shuffle=true"])
    feed = make_feeds(read_inputs(config, tokenizer), config, ONE, 0, 2).train
    asked = [q.index for n in range(6) for q in feed.step(3 * n)[0].questions]
    first, second = asked[:9], asked[9:]
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second


def test_steps_and_epochs_are_counted_in_prompts(tmp_path, tokenizer) -> None:
    config = config_of(tmp_path, rows=11)
    limits = read_inputs(config, tokenizer).limits
    assert rows_of_step(config) == limits.global_batch_size == 3
    assert limits.steps_per_epoch == 3
    assert limits.max_steps == 3
    sft = merge_run("sft", Said(flags={"model.global_batch_size": 4}, environ={})).config
    assert rows_of_step(sft) == 4


def test_fewer_prompts_than_a_step_asks_are_refused_with_what_to_type(tmp_path, tokenizer) -> None:
    with pytest.raises(DataError) as refusal:
        read_inputs(config_of(tmp_path, rows=2), tokenizer)
    said = str(refusal.value)
    assert (
        "2 usable prompts, fewer than the 3 of one step (--rollouts 6, 2 answers to each)" in said
    )
    assert "Use --rollouts 4 or less" in said
    assert "--data FILE:2" in said


def indices(feed) -> list[list[int]]:
    return [[q.index for q in questions.questions] for (questions,) in feed.once()]


def test_a_measurement_asks_every_prompt_once_in_file_order(tmp_path, tokenizer) -> None:
    feed = feeds_of(tmp_path, tokenizer, val=(8, 5)).validation
    assert indices(feed) == [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11, 12]]
    assert [questions.consumed for (questions,) in feed.once()] == [0, 6, 8]
    assert feed.sources == [("val0", 8), ("val1", 13)]


@pytest.mark.parametrize(("most", "asked"), [(3, [[0, 1, 2]]), (6, [[0, 1, 2, 3], [4, 5]])])
def test_a_measurement_may_ask_fewer(tmp_path, tokenizer, most, asked) -> None:
    feed = feeds_of(tmp_path, tokenizer, val=(4, 5), num_val_samples=most).validation
    assert indices(feed) == asked


def test_packing_says_nothing_of_answers_that_are_not_there_yet(tmp_path, tokenizer) -> None:
    config = config_of(tmp_path)
    assert packing_report(read_inputs(config, tokenizer), config, ONE) == []
