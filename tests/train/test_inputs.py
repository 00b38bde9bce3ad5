import pytest

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.data.tokenizer_hf import load_hf
from nemoalign.errors import DataError
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.inputs import make_feeds, packing_report, read_inputs
from tests.commands import tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.make_tokenizer().save_pretrained(folder)
    return load_hf({path.name: path.read_bytes() for path in folder.iterdir()}, {})


def _config(tmp_path, *, rows=10, **flags):
    data = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(rows, seed=1))
    keys = {"model.data.train_ds.file_path": [str(data)], "model.global_batch_size": 4, **flags}
    return merge_run("sft", Said(flags=keys, environ={})).config


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({}, 2),
        ({"trainer.sft.max_epochs": 3}, 6),
        ({"trainer.sft.max_epochs": 3, "trainer.sft.max_steps": 4}, 4),
        ({"trainer.sft.max_steps": 100}, 2),
        ({"trainer.sft.max_steps": 0}, 0),
    ],
    ids=["an epoch", "epochs", "steps first", "epoch first", "none"],
)
def test_a_run_ends_with_its_epochs_or_its_steps_whichever_comes_first(
    tmp_path, tokenizer, flags, steps
) -> None:
    inputs = read_inputs(_config(tmp_path, **flags), tokenizer)
    assert inputs.limits.max_steps == steps
    assert inputs.limits.schedule.max_steps == steps


def test_fewer_rows_than_a_global_batch_are_an_error(tmp_path, tokenizer) -> None:
    with pytest.raises(DataError, match=r"3 usable rows.*--gbs 3"):
        read_inputs(_config(tmp_path, rows=3), tokenizer)


def test_evaluation_needs_no_training_rows(tmp_path, tokenizer) -> None:
    data = tiny.write_rows(tmp_path / "val.jsonl", tiny.rows(3, seed=1))
    flags = {"model.data.validation_ds.file_path": [str(data)], "trainer.sft.max_steps": 0}
    config = merge_run("sft", Said(flags=flags, environ={})).config
    inputs = read_inputs(config, tokenizer)
    train, validation, *_ = make_feeds(inputs, config, ParallelLayout(1), 0, 2)
    assert train is None
    (packs,) = validation.once()
    assert sum(len(pack.documents) for pack in packs) == 3


def test_sequence_parallel_batches_divide_over_the_ranks(tmp_path, tokenizer) -> None:
    config = _config(tmp_path)
    inputs = read_inputs(config, tokenizer)
    layout = ParallelLayout(2, tp=2, sequence_parallel=True)
    train, *_ = make_feeds(inputs, config, layout, 0, 2)
    assert all(batch.tokens.shape[1] % 2 == 0 for batch in train.step(0))
    assert sum(batch.num_tokens for batch in train.step(0)) > 0


def test_the_report_counts_rows_and_tokens(tmp_path, tokenizer) -> None:
    (line,) = read_inputs(_config(tmp_path), tokenizer).findings.lines()
    assert "10 rows (prompt-response)" in line


def test_packing_says_what_it_saves(tmp_path, tokenizer) -> None:
    flags = {"model.data.train_ds.max_seq_length": 32, "model.micro_batch_size": 2}
    config = _config(tmp_path, **flags)
    inputs = read_inputs(config, tokenizer)
    (line,) = packing_report(inputs, config, ParallelLayout(1))
    assert "8 rows an epoch in 2 steps of about 1.5 packs of at most 64 tokens; 0% padding" in line
    lengths = [inputs.train.length(row) for row in range(8)]
    pairs = [sorted(lengths[s : s + 4], reverse=True)[at : at + 2] for s in (0, 4) for at in (0, 2)]
    without = 1 - sum(lengths) / sum(2 * longest for longest, _ in pairs)
    assert f"({without:.0%} without)" in line
    config = _config(tmp_path, **flags, **{"model.data.train_ds.packed_sequence": False})
    assert packing_report(inputs, config, ParallelLayout(1)) == []


def _pairs(tmp_path, *, algorithm="dpo", **flags):
    made = [
        {"prompt": row["input"], "chosen": row["output"], "rejected": "nothing"}
        for row in tiny.rows(8, seed=1)
    ]
    data = tiny.write_rows(tmp_path / "pairs.jsonl", made)
    keys = {"model.data.train_ds.file_path": [str(data)], "model.global_batch_size": 4, **flags}
    return merge_run(algorithm, Said(flags=keys, environ={})).config


def test_a_pack_has_room_for_both_answers_of_every_pair_of_a_micro_batch(
    tmp_path, tokenizer
) -> None:
    config = _pairs(tmp_path, **{"model.encoder_seq_length": 64, "model.micro_batch_size": 2})
    inputs = read_inputs(config, tokenizer)
    feeds = make_feeds(inputs, config, ParallelLayout(1), 0, 2)
    assert feeds.train is not None
    assert feeds.train.pack_capacity == 2 * 2 * 64
    (line,) = packing_report(inputs, config, ParallelLayout(1))
    assert "packs of at most 256 tokens" in line
    labels = _pairs(tmp_path, algorithm="kto", **{"model.encoder_seq_length": 64})
    feeds = make_feeds(read_inputs(labels, tokenizer), labels, ParallelLayout(1), 0, 2)
    assert feeds.train is not None
    assert feeds.train.pack_capacity == 64


def test_rewards_partners_and_weights_come_from_the_algorithms_settings(
    tmp_path, tokenizer
) -> None:
    config = _pairs(tmp_path, **{"model.dpo.default_chosen_reward": 3.0})
    rows = read_inputs(config, tokenizer).train
    assert rows is not None
    assert rows.settings.judged.default_rewards == (3.0, 0.0)
    flags = {"model.kto.mismatched_answer": "previous", "model.kto.desirable_loss_weight": 2.0}
    inputs = read_inputs(_pairs(tmp_path, algorithm="kto", **flags), tokenizer)
    assert inputs.train is not None
    assert inputs.train.settings.judged.partner_step == -1
    (problem,) = [one for one in inputs.findings.problems() if "pull" in one]
    assert "8 desirable and 8 undesirable answers and weights 2 and 1" in problem


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "kto"])
def test_shares_of_the_training_rows_are_disjoint_and_all_of_them(tmp_path, tokenizer, algorithm) -> None:  # fmt: skip
    made = [
        {"prompt": f"{n}?", "completion": "a", "input": f"{n}?", "output": "a"} for n in range(40)
    ]
    if algorithm != "sft":
        made = [{"prompt": row["prompt"], "chosen": "yes", "rejected": "no"} for row in made]
    data = tiny.write_rows(tmp_path / "rows.jsonl", made)
    keys = {"model.data.train_ds.file_path": [str(data)], "model.global_batch_size": 4}
    sets = ["model.data.splits_string=80,10,10"]
    inputs = read_inputs(
        merge_run(algorithm, Said(flags=keys, sets=sets, environ={})).config, tokenizer
    )
    splits = [inputs.train, inputs.validation, inputs.test]
    lines = [{rows.place(i) for i in range(len(rows))} for rows in splits if rows is not None]
    assert [len(part) for part in lines] == [32, 4, 4]
    assert set.union(*lines) == {f"rows.jsonl line {n + 1}" for n in range(40)}
    assert inputs.findings.overlaps == ()


def test_several_files_to_measure_on_are_sources_of_their_own(tmp_path, tokenizer) -> None:
    files = [
        tiny.write_rows(tmp_path / folder / "val.jsonl", tiny.rows(count, seed=count))
        for folder, count in (("a", 3), ("b", 5))
        if not (tmp_path / folder).mkdir()
    ]
    keys = {"model.data.validation_ds.file_path": [str(file) for file in files]}
    flags = {**keys, "trainer.sft.max_steps": 0, "model.global_batch_size": 4}
    config = merge_run("sft", Said(flags=flags, environ={})).config
    inputs = read_inputs(config, tokenizer)
    feed = make_feeds(inputs, config, ParallelLayout(1), 0, 2).validation
    assert feed is not None
    assert feed.sources == [("val", 3), ("val-2", 8)]
    batches = list(feed.sampler.once())
    assert [len(batch) for batch in batches] == [3, 4, 1]
    assert [feed.source_of(batch) for batch in batches] == ["val", "val-2", "val-2"]
