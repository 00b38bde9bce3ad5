"""``nemoalign ppo`` on a task that a tiny model learns: every kind of advantage, layout and reward."""

import json
import math

import pytest

from nemoalign.checkpoint.open import open_source
from tests.commands import tiny
from tests.rollouts import nouns

KINDS = {
    "gae": [],
    "reinforce": [],
    "rloo": [],
    "grpo": [],
    "value head": ["--advantage", "gae", "--share-trunk"],
    "dapo": [
        "--advantage", "grpo", "--kl", 0, "-s", "model.ppo.ratio_eps_high=0.28", "-s",
        "model.ppo.drop_even_groups=true",
    ],
    "gspo": ["--advantage", "grpo", "--loss", "gspo", "-s", "model.ppo.loss_average=answers"],
    "dr grpo": [
        "--advantage", "grpo", "-s", "model.ppo.loss_average=max_tokens", "-s",
        "model.ppo.scale_rewards=none",
    ],
    "cispo": ["--advantage", "rloo", "--loss", "cispo", "--kl-in", "loss"],
    "lora": ["--lora", 4, "--entropy", 0.01],
}  # fmt: skip
LAYOUTS = {
    "micro batch 1": ["--mbs", 1],
    "unpacked": ["--mbs", 16, "--no-packing"],
    "TP2 SP": ["--tp", 2, "--sequence-parallel"],
    "PP2": ["--pp", 2],
    "DP2": ["--devices", 2],
}
CURVE = (
    "reward",
    "loss",
    "kl",
    "critic_loss",
    "grad_norm",
    "explained_variance",
    "critic_grad_norm",
)


@pytest.fixture(scope="module")
def plain(nouns_made, tmp_path_factory) -> list[dict]:
    """Three steps of one rank."""
    out = tmp_path_factory.mktemp("plain") / "run"
    return nouns.ppo(nouns_made, out, "--ppo-epochs", 2, "--critic-lr", "1e-3", steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_advantage_and_loss_takes_steps_from_its_own_answers(
    kind, nouns_made, tmp_path
) -> None:
    flags = KINDS[kind] or ["--advantage", kind]
    found = nouns.ppo(nouns_made, tmp_path / "run", *flags, steps=2)
    assert [line["step"] for line in found] == [1, 2]
    for line in found:
        # Entropies that are learned are computed with the log-probs, in another order.
        assert line["ratio_deviation"] <= (1e-6 if "--entropy" in flags else 0)
        assert line["updates"] == 2
        assert line["grad_norm"] > 0
        numbers = [value for value in line.values() if isinstance(value, float)]
        assert all(math.isfinite(value) for value in numbers), line
    has_critic = kind in ("gae", "value head", "lora")
    assert ("explained_variance" in found[0]) == ("critic_loss" in found[0]) == has_critic
    assert ("kl" in found[0]) == (kind != "dapo")
    if has_critic or kind in ("reinforce", "rloo"):  # elsewhere it is told of the updates
        assert found[0]["kl"] == pytest.approx(0, abs=1e-6)
        assert abs(found[1]["kl"]) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_curve_depends_on_no_layout(name, plain, nouns_made, tmp_path) -> None:
    flags = ["--ppo-epochs", 2, "--critic-lr", "1e-3", *LAYOUTS[name]]
    found = nouns.ppo(nouns_made, tmp_path / "run", *flags, steps=3)
    assert len({line["reward"] for line in plain}) == 3
    for ours, theirs in zip(found, plain, strict=True):
        for key in CURVE:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), key
        assert ours["response_tokens"] == theirs["response_tokens"]


@pytest.mark.slow
def test_the_policy_learns_what_it_is_rewarded_for(nouns_made, tmp_path) -> None:
    found = nouns.ppo(
        nouns_made, tmp_path / "run", "--ppo-epochs", 2, "--critic-lr", "1e-3", "--schedule", "linear",
        "--val", nouns_made / "prompts.jsonl", "--val-every", 25, steps=25,
    )  # fmt: skip
    rewards = [line["reward"] for line in found]
    assert rewards[0] < 0.35
    assert sum(rewards[-5:]) / 5 > 0.7
    assert sum(line["explained_variance"] for line in found[-5:]) / 5 > 0.2
    measured = tiny.read_metrics(tmp_path / "run", "val")[-1]
    assert measured["val_reward"] > 0.7
    answers = tmp_path / "answers.jsonl"
    tiny.quickly(
        "generate", "--ckpt", tmp_path / "run", "--data", nouns_made / "prompts.jsonl", "-o", answers,
        "--max-new-tokens", 9, "--temperature", 0, "--precision", "fp32",
    )  # fmt: skip
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    said = [line["response"].strip() for line in lines]
    right = [nouns.KIND[noun] == one for noun, one in zip(sorted(nouns.KIND), said, strict=True)]
    assert sum(right) / len(right) > 0.7


def rewards_of_some(made, tmp_path):
    """A reward that fails where the prompt asks for some nouns."""
    (tmp_path / "moody.py").write_text(
        "def moody(prompt, response, kind, **others):\n"
        "    if kind == 'tool':\n"
        "        raise KeyError(kind)\n"
        "    return None if kind == 'food' else float(response.strip() == kind)\n"
    )
    return f"{tmp_path / 'moody.py'}:moody"


@pytest.mark.slow
def test_a_reward_that_fails_for_some_costs_these_and_not_the_run(nouns_made, tmp_path) -> None:
    reward = rewards_of_some(nouns_made, tmp_path)
    out = tmp_path / "run"
    said = tiny.quickly(*nouns.line(nouns_made, out, reward=reward, steps=2), talk=True)
    lines = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    kinds = {line["prompt"]: nouns.KIND[line["prompt"][8:-1]] for line in lines}
    for line in lines:
        assert (line["reward"] is None) == (kinds[line["prompt"]] != "animal")
    for step in tiny.read_metrics(out):
        assert 32 < step["unrewarded"] < 64
        assert math.isfinite(step["loss"])
        assert step["ratio_deviation"] == 0
    assert said.count("moody raised KeyError") == 1
    assert "warning: " in said


@pytest.fixture(scope="module")
def judge(nouns_made, tmp_path_factory):
    """A reward model that likes right answers better than none, and lies in the directory of its run."""
    root = tmp_path_factory.mktemp("judge")
    pairs = [
        {"prompt": f"what is {noun}?", "chosen": f" {kind}", "rejected": " dunno"}
        for noun, kind in nouns.KIND.items()
    ]
    tiny.write_rows(root / "pairs.jsonl", pairs)
    tiny.quickly(
        "rm", "--ckpt", nouns_made / "sft.nemo", "--data", root / "pairs.jsonl", "-o", root / "rm",
        "--gbs", 24, "--mbs", 24, "--seq-len", 48, "--lr", "3e-3", "--precision", "fp32", "--warmup", 0,
        "--epochs", 100, "--max-steps", 15, "--val-every", 0,
    )  # fmt: skip
    return root / "rm"


def score(judge, tmp_path, lines: list[dict]) -> list[float]:
    """What the reward model itself makes of some answers."""
    rows = [{"prompt": line["prompt"], "response": line["response"]} for line in lines]
    tiny.write_rows(tmp_path / "answers.jsonl", rows)
    tiny.quickly(
        "rm", "--score", tmp_path / "answers.jsonl", "--ckpt", judge, "--precision", "fp32", "--gbs", 16,
        "-o", tmp_path / "scores.jsonl",
    )  # fmt: skip
    found = (tmp_path / "scores.jsonl").read_text().splitlines()
    return [json.loads(line)["score"] for line in found]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], ["--lora", 4]], ids=["whole", "lora"])
def test_a_reward_model_judges_as_it_does_alone_and_the_critic_starts_from_it(
    lora, judge, nouns_made, tmp_path
) -> None:
    flags = ["-s", "model.ppo.rollouts_kept=64", "--critic-lr", "1e-3", *lora]
    out = tmp_path / "run"
    said = tiny.quickly(*nouns.line(nouns_made, out, *flags, reward=judge, steps=2), talk=True)
    assert "as a reward model it is " in said
    assert "reward model: " not in said, "a second one was built beside the critic"
    steps = tiny.read_metrics(out)
    assert all(math.isfinite(step["explained_variance"]) for step in steps)
    assert steps[0]["values_std"] > 0
    assert steps[1]["critic_loss"] != steps[0]["critic_loss"]
    # The critic has moved by then; the reward model is what it was.
    lines = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    assert len(lines) == 128
    ended = [line for line in lines if line["finished"]]
    assert len(ended) > 64
    alone = score(judge, tmp_path, ended)
    assert [line["reward"] for line in ended] == pytest.approx(alone, abs=1e-4)
    described = open_source(out / "megatron_gpt_ppo_critic.nemo").describe()
    assert ("LoRA adapter of a reward model" if lora else "reward model") in described


@pytest.mark.slow
def test_rewards_are_summed_by_weight_and_an_answer_that_does_not_end_loses_some(
    judge, nouns_made, tmp_path
) -> None:
    more = [
        "--reward",
        f"{judge}:-0.5",
        "-s",
        "model.ppo.unfinished_penalty=-2",
        "--max-new-tokens",
        6,
    ]
    reward = f"{nouns_made / 'score.py'}:right:2"
    out = tmp_path / "run"
    (step,) = nouns.ppo(nouns_made, out, *more, "--advantage", "rloo", reward=reward, steps=1)
    function, model = f"reward/{nouns_made / 'score.py'}:right", f"reward/{judge}"
    parts = 2 * step[function] - 0.5 * step[model] - 2 * (1 - step["finished"])
    assert 0 < step["finished"] < 1
    assert step["reward"] == pytest.approx(parts, abs=1e-5)
    for line in map(json.loads, (out / "rollouts.jsonl").read_text().splitlines()):
        by = line["rewards"]
        whole = 2 * by[function[7:]] - 0.5 * by[model[7:]] - 2 * (not line["finished"])
        assert line["reward"] == pytest.approx(whole, abs=1e-5)
