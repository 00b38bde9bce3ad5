"""What can be wrong in a benchmark without anybody noticing: its help, its arithmetic, its rows."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from tests.commands import tiny

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """The benchmarks' modules, which import one another as scripts of one folder do."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize(
    ("name", "measures"),
    [
        ("sft_speed", "Tokens per second"),
        ("preference_speed", "Answers per second"),
        ("ppo_speed", "whole reinforcement steps"),
        ("generation_speed", "Generated tokens per second"),
        ("io_speed", "Seconds of"),
        ("gpu_sft", "loss curve"),
        ("big_data", "Speed of indexing"),
        ("save_stall", "How long training stands still"),
    ],
)
def test_a_benchmark_says_what_it_measures_without_importing_torch(name, measures):
    imports = [sys.executable, "-X", "importtime", BENCHMARKS / f"{name}.py", "--help"]
    said = subprocess.run(imports, capture_output=True, text=True, check=True)
    assert measures in said.stdout
    assert "| torch" not in said.stderr


def test_operations_of_a_token_are_those_that_torch_counts(benchmark):
    length, fields = 24, {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3}
    fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    model = LlamaForCausalLM(LlamaConfig(**fields, attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.long), use_cache=False)
    forward = counter.get_total_flops() / length
    masked = 2 * fields["num_hidden_layers"] * fields["hidden_size"] * length
    per_token = benchmark("gpu_sft").flops_per_token(fields, length)
    assert per_token == pytest.approx(3 * (forward - masked), rel=0.01)


def test_a_row_of_the_peers_is_the_whole_conversation_and_its_answer_the_target(
    benchmark, tmp_path
):
    tokenizer = tiny.make_tokenizer()
    made = tiny.rows(5, seed=1)
    path = tiny.write_rows(tmp_path / "rows.jsonl", [tiny.as_messages(row) for row in made])
    rows = benchmark("rows").read_rows(path, tokenizer)
    for row, source in zip(rows, made, strict=True):
        answer = tokenizer.decode(row.tokens[-row.targets :])
        prompt = tokenizer.decode(row.tokens[: -row.targets])
        assert answer == source["output"] + "<|im_end|>"
        assert prompt.endswith(f"{source['input']}<|im_end|>\n<|im_start|>assistant\n")
    tokens, labels, mask = benchmark("rows").pad(rows)
    assert mask.sum() == sum(len(row.tokens) for row in rows)
    assert (labels != -100).sum() == sum(row.targets for row in rows)
    assert torch.equal(labels[labels != -100], tokens[labels != -100])


def test_answers_of_a_pair_are_rendered_after_their_prompt_and_counted(benchmark, tmp_path):
    module, tokenizer = benchmark("preference_rows"), tiny.make_tokenizer()
    turns = [{"from": "human", "value": "What does the cat say?"}]
    answers = {"chosen": {"value": "a meow"}, "rejected": {"value": "a bark, a hoot"}}
    row = module.render("dpo", {"conversations": turns, **answers}, tokenizer)
    prompt = "<|im_start|>user\nWhat does the cat say?<|im_end|>\n<|im_start|>assistant\n"
    assert row.record() == {
        "prompt": prompt,
        "chosen": "a meow<|im_end|>",
        "rejected": "a bark, a hoot<|im_end|>",
    }
    whole = tokenizer(prompt + "a meow<|im_end|>", add_special_tokens=False)["input_ids"]
    assert row.lengths[0] == len(whole)
    assert module.step_tokens([row, row, row], 2) == [2 * sum(row.lengths), sum(row.lengths)]


def test_a_mismatched_row_is_a_prompt_with_the_answer_before_it(benchmark):
    module = benchmark("preference_rows")
    rows = [
        module.Rendered("", [""], [prompt + answer], [answer])
        for prompt, answer in ((10, 1), (20, 2), (30, 3))
    ]
    assert module.mismatched_tokens(rows, 3, 1000) == (10 + 3) + (20 + 1) + (30 + 2)
    assert module.mismatched_tokens(rows, 2, 25) == (10 + 2) + (20 + 1) + 25


def test_a_seed_asks_the_same_questions_and_vowels_are_a_share_of_letters(benchmark, tmp_path):
    module = benchmark("ppo_work")
    path = module.write_questions(tmp_path / "made" / "questions.jsonl", 12)
    asked = module.read_questions(path)
    assert asked == [row["messages"] for row in module.questions(12)]
    assert asked[:6] == [row["messages"] for row in module.questions(6)]
    assert len({turn["content"] for (turn,) in asked}) > 6
    assert all(turn["role"] == "user" for (turn,) in asked)
    assert module.vowels("aaa", "Bee, 12!") == 2 / 3
    assert module.vowels("aaa", "12!") == 0


def test_a_step_of_ppo_is_its_phases_and_the_first_one_is_left_out(benchmark):
    module = benchmark("ppo_speed")
    line = {"prompt_tokens": 36.5, "response_tokens": 64.0, "tokens_per_second": 201.0}
    line |= {"seconds_write": 6.0, "seconds_score": 0.5, "seconds_look_back": 2.5}
    phases = module.in_phases(line, 32)
    assert phases == pytest.approx({"write": 6.0, "look_back": 3.0, "learn": 7.0})
    options = module.parser().parse_args(["grpo"])
    slow = {name: 100.0 for name in phases}
    found = module.figures(options, [slow, phases, phases], [64.0] * 3)
    assert found["answers_per_second"] == pytest.approx(2.0)
    assert found["new_tokens_per_second"] == pytest.approx(128.0)
    assert found["write_seconds"] == 6.0
    with pytest.raises(SystemExit, match="64 were asked for"):
        module.figures(options, [phases], [63.5])


def test_a_ratio_compares_what_was_measured_in_the_same_round(benchmark):
    sides = benchmark("side_by_side")
    ours = [{"speed": 2.0}, {"speed": 30.0}, {"speed": 8.0}]
    peer = [{"speed": 1.0}, {"speed": 10.0}, {"speed": 2.0}]
    assert sides.ratio(ours, peer, "speed") == 3.0
    assert sides.median(ours, "speed") == 8.0


def test_a_command_is_measured_by_its_own_memory_and_its_output_kept(benchmark):
    sides = benchmark("side_by_side")
    finished = sides.run([sys.executable, "-c", "print(len(b'x' * (1 << 28)))"])
    assert finished.stdout == f"{1 << 28}\n"
    assert finished.peak_rss_bytes > 1 << 28
    assert finished.seconds > 0
    with pytest.raises(SystemExit, match="ended with 3"):
        sides.run([sys.executable, "-c", "import sys; sys.exit(3)"])


def test_both_sides_write_as_many_tokens_as_each_row_asks_for_and_the_same(benchmark, tmp_path):
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    LlamaForCausalLM(LlamaConfig(**fields, initializer_range=0.2)).save_pretrained(tmp_path)
    asked = [([3, 9, 4], 6), ([7], 2), ([5, 5, 8, 1, 2], 4)]
    module = benchmark("generation_speed")
    with benchmark("generation_sides").opened(tmp_path, "fp32") as sides:
        results = {name: [module.measured(side, asked, 2)] for name, side in sides.items()}
    module.check(results)
    assert results["nemoalign"][0]["rows_that_part"] == 0
    assert module.parted([[1, 2], [3]], [[1, 2], [4]]) == 1
