"""A run of ppo that is stopped, killed or refused: what goes on, what was saved, and what to type."""

import json
import os
import signal

import pytest

from nemoalign.rollouts import writing
from tests.commands import tiny
from tests.rollouts import nouns

TIMED = ("seconds", "tokens_per_second", "memory_gib")
KINDS = {
    "critic": ["--critic-lr", "1e-3", "--ppo-epochs", 2],
    "value head": ["--share-trunk", "-s", "model.ppo.value_loss_weight=1"],
    "lora": ["--lora", 4, "--lr", "5e-3", "--critic-lr", "5e-3"],
    "grpo": ["--advantage", "grpo"],
}


def told(run) -> list[dict]:
    """The lines of a run's steps without what a clock says."""
    return [
        {name: value for name, value in line.items() if not name.startswith(TIMED)}
        for line in tiny.read_metrics(run)
    ]


def stop_in(monkeypatch, step: int) -> list[bool]:
    """Ask this process to stop amid the answers of a step; return what is seen then: whether some are left."""
    real, calls, seen = writing.generate, [], []

    def generate(*arguments, go_on, **options):
        calls.append([])

        def asked(is_writing: bool) -> bool:
            calls[-1].append(is_writing)
            if len(calls) == step and len(calls[-1]) == 2:
                seen.append(is_writing)
                os.kill(os.getpid(), signal.SIGTERM)
            return go_on(is_writing)

        return real(*arguments, go_on=asked, **options)

    monkeypatch.setattr(writing, "generate", generate)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_stopped_amid_writing_goes_on_as_if_it_never_was(
    kind, nouns_made, tmp_path, monkeypatch
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    expected = (nouns.ppo(nouns_made, whole, *KINDS[kind], steps=4), told(whole))[1]
    line = nouns.line(nouns_made, parted, *KINDS[kind], steps=4)
    with monkeypatch.context() as patch:
        seen = stop_in(patch, 3)
        tiny.quickly(*line, code=75)
    assert seen == [True], "there were answers left to write"
    assert told(parted) == expected[:2]
    assert len({entry["reward"] for entry in expected}) > 2
    tiny.quickly(*line)
    assert told(parted) == expected
    answers = [(run / "rollouts.jsonl").read_text() for run in (whole, parted)]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_run_that_is_killed_amid_a_rollout_goes_on_from_its_last_checkpoint_in_any_layout(
    nouns_made, tmp_path
) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os, pathlib, signal\n"
        f"dead = pathlib.Path({str(tmp_path / 'dead')!r})\n"
        "def deadly(prompt, response, kind, **others):\n"
        f"    steps = pathlib.Path({str(tmp_path / 'parted/metrics.jsonl')!r})\n"
        "    if not dead.exists() and steps.exists() and len(steps.read_text().splitlines()) == 3:\n"
        "        dead.touch()\n"
        "        os.kill(os.getppid(), signal.SIGKILL)\n"
        "    return float(response.strip() == kind)\n"
    )
    flags = ["--critic-lr", "1e-3", "--save-every", 2]
    reward = f"{tmp_path / 'deadly.py'}:deadly"
    expected = nouns.ppo(nouns_made, tmp_path / "whole", *flags, reward=reward, steps=5)
    line = nouns.line(nouns_made, tmp_path / "parted", *flags, reward=reward, steps=5)
    assert tiny.command(*line).returncode == -signal.SIGKILL
    assert [entry["step"] for entry in tiny.read_metrics(tmp_path / "parted")] == [1, 2, 3]
    tiny.quickly(*line, "--pp", 2)
    # What was computed twice is logged twice; the later one counts.
    found = list(
        {entry["step"]: entry for entry in tiny.read_metrics(tmp_path / "parted")}.values()
    )
    assert [entry["step"] for entry in found] == [1, 2, 3, 4, 5]
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("reward", "loss", "kl", "critic_loss", "explained_variance", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), (ours["step"], key)
    kept = [json.loads(text)["step"] for text in (tmp_path / "parted/rollouts.jsonl").open()]
    assert kept == sorted(kept)
    assert kept.count(3) == 8


@pytest.mark.slow
def test_what_a_run_leaves_is_the_start_of_others(nouns_made, tmp_path) -> None:
    nouns.ppo(nouns_made, tmp_path / "run", "--critic-lr", "1e-3", steps=1)
    critic = tmp_path / "run/megatron_gpt_ppo_critic.nemo"
    flags = ["--critic", critic, "--critic-lr", 0, "--ckpt", tmp_path / "run/megatron_gpt_ppo.nemo"]
    (step,) = nouns.ppo(nouns_made, tmp_path / "next", *flags, steps=1)
    assert step["values_std"] > 0, "the critic knows something"
    assert step["kl"] == pytest.approx(0, abs=1e-6), "the reference is the start of this run"
    said = tiny.quickly(
        *nouns.line(nouns_made, tmp_path / "judged", reward=critic, steps=1), talk=True
    )
    assert f"critic: {critic}; as a reward model it is " in said


@pytest.mark.slow
def test_a_run_of_no_steps_measures(nouns_made, tmp_path) -> None:
    flags = ["--val", f"{nouns_made / 'prompts.jsonl'}:3"]
    tiny.quickly(*nouns.line(nouns_made, tmp_path / "run", *flags, steps=0))
    (measured,) = tiny.read_metrics(tmp_path / "run", "val")
    assert 0 < measured["val_reward"] < 0.5
    tiny.quickly(*nouns.line(nouns_made, tmp_path / "two", *flags, "--devices", 2, steps=0))
    (other,) = tiny.read_metrics(tmp_path / "two", "val")
    assert {k: other[k] for k in ("val_reward", "val_finished")} == {
        k: measured[k] for k in ("val_reward", "val_finished")
    }


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--gbs", 48], 2, "--rollouts 64 is no multiple of --gbs 48, the answers of one update. Use --rollouts 96, or --gbs 16"),
        (["--rollouts", 128], 8, "72 usable prompts, fewer than the 128 of one step"),
        (["--advantage", "grpo", "--critic", "{made}/sft.nemo"], 2, "--critic has no effect"),
        (["--critic", "{made}/absent.nemo"], 3, "There is nothing at {made}/absent.nemo; --critic names it"),
        (["--max-new-tokens", 60], 2, "Use 32 or fewer"),
    ],
)  # fmt: skip
def test_sizes_and_sources_that_do_not_fit_are_refused(
    flags, code, says, nouns_made, tmp_path
) -> None:
    typed = [str(flag).format(made=nouns_made) for flag in flags]
    line = nouns.line(nouns_made, tmp_path / "run", *typed, steps=2)
    said = tiny.quickly(*line, talk=True, code=code)
    assert says.format(made=nouns_made) in said
    assert "Traceback" not in said
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("reward", "code", "says"),
    [
        (None, 2, "something that says what answers are worth (--reward)"),
        ("{made}/absent.nemo", 2, "there is no file {made}/absent.nemo"),
        ("{made}/score.py", 2, "must name a function of {made}/score.py: {made}/score.py:FUNCTION"),
        ("{made}/score.py:wrong", 2, "has no wrong; its functions are right"),
        ("no_such_module:f", 2, "--reward no_such_module:f does not work"),
        ("{made}/sft.nemo", 4, "sft.nemo has no reward head, so it gives no rewards. Train a reward model with nemoalign rm"),
    ],
)  # fmt: skip
def test_what_gives_no_rewards_is_refused_with_what_does(
    reward, code, says, nouns_made, tmp_path
) -> None:
    line = nouns.line(nouns_made, tmp_path / "run", reward="REWARD", steps=2)
    place = line.index("REWARD")
    line[place - 1 : place + 1] = [] if reward is None else ["--reward", reward.format(made=nouns_made)]  # fmt: skip
    said = tiny.quickly(*line, talk=True, code=code)
    assert says.format(made=nouns_made) in said
    assert "Traceback" not in said
