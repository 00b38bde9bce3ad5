"""DPO as a command: NeMo-Aligner's own five steps, TRL's ten, any layout, and what it refuses."""

import json
from pathlib import Path

import pytest

from tests.commands import tiny

FIXTURES = Path(__file__).parents[1] / "fixtures"
PLAIN = ["--precision", "fp32", "--schedule", "constant", "--warmup", 0, "--weight-decay", 0]
LAYOUTS = {
    "micro batch 4, unpacked": ["--mbs", 4, "--no-packing"],
    "TP2 SP": ["--mbs", 2, "--tp", 2, "--sequence-parallel"],
    "PP2": ["--mbs", 2, "--pp", 2],
    "DP2": ["--mbs", 1, "--devices", 2],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("dpo")
    tiny.make_llama(root / "hf")
    rows = json.loads((FIXTURES / "trl/dpo.json").read_text())["rows"]
    tiny.write_rows(root / "pairs.jsonl", rows)
    return root


def like_trl(made: Path, out: Path, *flags: object, steps: int = 10) -> list[dict]:
    tiny.ok(
        "dpo", "--ckpt", made / "hf", "--data", made / "pairs.jsonl", "-o", out, "--gbs", 4,
        "--max-steps", steps, "--seq-len", 256, "--lr", "1e-3", "--beta", 0.1, *PLAIN,
        "-s", "model.optim.betas=[0.9,0.999]", *flags,
    )  # fmt: skip
    return tiny.read_metrics(out)


@pytest.mark.slow
def test_ten_steps_are_trls(made, tmp_path) -> None:
    steps = json.loads((FIXTURES / "trl/dpo.json").read_text())["steps"]
    found = like_trl(made, tmp_path / "run", "--mbs", 2)
    for ours, theirs in zip(found, steps, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        for name in ("chosen", "rejected"):
            assert ours[f"rewards_{name}"] == pytest.approx(theirs[f"rewards/{name}"], abs=1e-4)
            assert ours[f"logprobs_{name}"] == pytest.approx(theirs[f"logps/{name}"], abs=1e-3)
        assert ours["accuracy"] == theirs["rewards/accuracies"]


@pytest.mark.slow
def test_five_steps_are_nemo_aligners_own(tmp_path) -> None:
    steps = json.loads((FIXTURES / "align/nemo_aligner_dpo.json").read_text())["steps"]
    tiny.ok(
        "dpo", "--ckpt", FIXTURES / "llama.nemo", "--data", FIXTURES / "align/pref.jsonl",
        "-o", tmp_path / "run", "--gbs", 4, "--mbs", 2, "--max-steps", 5, "--epochs", 5,
        "--seq-len", 64, "--lr", "1e-3", "--beta", 0.2, "--grad-clip", 0, *PLAIN,
        "-s", "model.data.train_ds.add_eos=false",
    )  # fmt: skip
    for ours, theirs in zip(tiny.read_metrics(tmp_path / "run"), steps, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
        unscaled = theirs["metrics"]["rewards_chosen_mean"]  # NeMo-Aligner's are not times beta
        assert ours["rewards_chosen"] == pytest.approx(0.2 * unscaled, abs=1e-4)
        assert ours["accuracy"] == theirs["metrics"]["acc"]


@pytest.mark.slow
def test_the_curve_depends_on_no_layout(made, tmp_path) -> None:
    loss = ["--loss", "dpo:0.5,aot:0.5", "--sft-weight", 0.1]
    expected = like_trl(made, tmp_path / "one", "--mbs", 1, *loss, steps=3)
    for name, flags in LAYOUTS.items():
        found = like_trl(made, tmp_path / name, *flags, *loss, steps=3)
        for ours, theirs in zip(found, expected, strict=True):
            for key in ("loss", "accuracy", "margin", "rewards_chosen", "sft_loss"):
                assert ours[key] == pytest.approx(theirs[key], abs=2e-5), (name, key)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4), name


@pytest.mark.slow
def test_another_reference_is_compared_with_and_lora_refuses_one(made, tmp_path) -> None:
    trained = tmp_path / "first"
    start = like_trl(made, trained, "--mbs", 2, steps=2)
    again = like_trl(made, tmp_path / "second", "--mbs", 2, "--ref", trained / "megatron_gpt_dpo.nemo", steps=1)  # fmt: skip
    assert again[0]["logprobs_chosen"] == pytest.approx(start[0]["logprobs_chosen"], abs=1e-4)
    assert again[0]["rewards_chosen"] < -0.01  # the reference learned to prefer it
    wrong = tiny.command(
        "dpo", "--ckpt", made / "hf", "--data", made / "pairs.jsonl", "-o", tmp_path / "x",
        "--gbs", 4, "--lora", 4, "--ref", trained / "megatron_gpt_dpo.nemo",
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "Leave --ref out" in wrong.stderr
