"""Each part of a report, from what a run directory may hold."""

import pytest

from nemoalign.train.report import sections
from nemoalign.train.report.read import Run
from tests.train.report.test_markup import Seen


@pytest.mark.parametrize(
    "part",
    [sections.warnings, sections.samples, sections.generations, sections.data, sections.config,
     sections.ranks, sections.environment],
)  # fmt: skip
def test_a_part_of_which_nothing_is_known_is_left_out(part, tmp_path) -> None:
    assert part(Run(tmp_path)) == ""


def test_the_head_says_how_far_a_run_is_or_why_it_ended(tmp_path) -> None:
    run = Run(tmp_path / "sft-3", about={"algorithm": "sft", "max_steps": 1200}, last={"step": 30})
    assert Seen(sections.head(run)).text.startswith("sft · sft-3 runningstep 30 of 1,200;")
    run.summary = {"state": "diverged", "reason": "At step 9 the loss is nan."}
    assert "divergedAt step 9 the loss is nan." in Seen(sections.head(run)).text


def test_numbers_are_the_summarys_or_the_last_steps(tmp_path) -> None:
    run = Run(tmp_path, last={"step": 3, "tokens_per_second": 1234.5678})
    run.curves = {"loss": {"val": {0: 3.0, 2: 1.23456789}}}
    assert "tokens per second1,234.6" in Seen(sections.numbers(run)).text
    assert "val loss1.2346" in Seen(sections.numbers(run)).text
    run.summary = {"steps": 1000, "best": {"val_loss": 0.5, "step": 900}}
    assert "steps1,000" in Seen(sections.numbers(run)).text
    assert "bestval_loss 0.5, step 900" in Seen(sections.numbers(run)).text


def test_samples_show_what_is_masked_and_what_is_trained(tmp_path) -> None:
    parts = [["masked", "Q: <b>"], ["truncated", "gone"], ["trained", "A"]]
    sample = {"title": "a.jsonl line 1: 9 tokens, 4 trained", "parts": parts}
    made = sections.samples(Run(tmp_path, about={"samples": [sample]}))
    assert (
        '<span class="masked">Q: &lt;b&gt;</span><span class="truncated">gone</span><mark>A</mark>'
        in made
    )
    assert "a.jsonl line 1: 9 tokens, 4 trained" in made


def test_the_newest_generations_are_open_and_the_oldest_left_out(tmp_path) -> None:
    run = Run(tmp_path)
    run.generations = [
        {"step": step, "prompt": f"ask {step}", "response": "r" * 9000} for step in range(9)
    ]
    made = sections.generations(run)
    seen = Seen(made)
    assert made.count("<details") == 5
    assert "ask 8" in seen.text.split("after step 7")[0]
    assert "ask 3" not in seen.text
    assert made.count(" open=") == 1
    assert "[... 5,000 characters ...]" in seen.text


def test_the_data_report_is_shown_whatever_its_shape(tmp_path) -> None:
    run = Run(tmp_path, about={"data": ["train data x: 3 rows"]})
    run.data = {
        "files": [{"path": "a", "rows": 1234}, {"path": "b", "lost": None}],
        "overlap": [1, 2.5],
    }
    text = Seen(sections.data(run)).text
    assert "train data x: 3 rows" in text
    for words in ("pathrowslost", "a1,234", "bnone", "overlap12.5"):
        assert words in text


def test_chosen_settings_come_before_all_of_them_with_their_sources(tmp_path) -> None:
    config = {"model.seed": 1, "model.optim.lr": 0.1, "x": "<i>"}
    sources = {"model.seed": "default", "model.optim.lr": "flag --lr", "x": "a.yaml"}
    made = sections.config(Run(tmp_path, about={"config": config, "sources": sources}))
    first, everything = made.split("<details>")
    assert "model.seed" not in first
    assert "model.optim.lr" in first
    assert "flag --lr" in first
    assert all(key in everything for key in config)
    assert "<i>" not in made


def test_warnings_before_and_while_training(tmp_path) -> None:
    run = Run(tmp_path, about={"warnings": ["odd key"]})
    run.warnings = [{"step": n, "warning": f"w{n}"} for n in range(200)]
    text = Seen(sections.warnings(run)).text
    assert "101 earlier ones" in text
    assert "step 199: w199" in text
    assert "odd key" not in text
