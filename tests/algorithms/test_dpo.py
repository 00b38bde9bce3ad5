"""DPO as a command: NeMo-Aligner's own five steps, TRL's ten, any layout, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from nemoalign.algorithms.dpo import Dpo
from nemoalign.checkpoint.open import open_source
from nemoalign.config.preference import DpoSettings
from nemoalign.data.collate import IGNORED, Batch
from tests.algorithms import curves
from tests.commands import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return curves.make(tmp_path_factory.mktemp("dpo"), "dpo")


@pytest.mark.slow
def test_ten_steps_are_trls(made, tmp_path) -> None:
    found = curves.run("dpo", made, tmp_path / "run", "--mbs", 2)
    for ours, theirs in zip(found, curves.stored("dpo")["steps"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        for name in ("chosen", "rejected"):
            assert ours[f"rewards_{name}"] == pytest.approx(theirs[f"rewards/{name}"], abs=1e-4)
            assert ours[f"logprobs_{name}"] == pytest.approx(theirs[f"logps/{name}"], abs=1e-3)
        assert ours["accuracy"] == theirs["rewards/accuracies"]


@pytest.mark.slow
def test_five_steps_are_nemo_aligners_own(tmp_path) -> None:
    oracle = json.loads((curves.FIXTURES / "align/nemo_aligner_dpo.json").read_text())
    tiny.quickly(
        "dpo", "--ckpt", curves.FIXTURES / "llama.nemo", "--data", curves.FIXTURES / "align/pref.jsonl",
        "-o", tmp_path / "run", "--gbs", 4, "--mbs", 2, "--max-steps", 5, "--epochs", 5,
        "--seq-len", 64, "--lr", "1e-3", "--beta", 0.2, "--grad-clip", 0, *curves.PLAIN,
        "-s", "model.data.train_ds.add_eos=false",
    )  # fmt: skip
    for ours, theirs in zip(tiny.read_metrics(tmp_path / "run"), oracle["steps"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
        unscaled = theirs["metrics"]["rewards_chosen_mean"]  # NeMo-Aligner's are not times beta
        assert ours["rewards_chosen"] == pytest.approx(0.2 * unscaled, abs=1e-4)
        assert ours["accuracy"] == theirs["metrics"]["acc"]
    weights = open_source(tmp_path / "run/megatron_gpt_dpo.nemo").weights
    curves.assert_final_weights(weights.read, oracle)


@pytest.mark.slow
def test_the_curve_depends_on_no_layout(made, tmp_path) -> None:
    loss = ["--loss", "dpo:0.4,aot:0.4,sft:0.2", "--sft-weight", 0.1]
    expected = curves.run("dpo", made, tmp_path / "one", "--mbs", 1, *loss, steps=3)
    for name, flags in curves.LAYOUTS.items():
        found = curves.run("dpo", made, tmp_path / name, *flags, *loss, steps=3)
        curves.assert_close(found, expected, name, within=2e-5)


@pytest.mark.slow
def test_another_reference_is_compared_with_and_lora_needs_its_cache(made, tmp_path) -> None:
    trained = tmp_path / "first"
    start = curves.run("dpo", made, trained, "--mbs", 2, steps=2)
    again = curves.run("dpo", made, tmp_path / "second", "--mbs", 2, "--ref", trained / "megatron_gpt_dpo.nemo", steps=1)  # fmt: skip
    assert again[0]["logprobs_chosen"] == pytest.approx(start[0]["logprobs_chosen"], abs=1e-4)
    assert again[0]["rewards_chosen"] < -0.01  # the reference learned to prefer it
    lora = ["--lora", 4, "--ref", trained / "megatron_gpt_dpo.nemo", "-o", tmp_path / "x"]
    wrong = ["dpo", "--ckpt", made / "hf", "--data", made / "rows.jsonl", "--gbs", 4, *lora]
    assert "Add --ref-cache" in tiny.quickly(*wrong, talk=True, code=2)
    cached = curves.run("dpo", made, tmp_path / "x", "--ref-cache", *lora, steps=1)
    assert cached[0]["rewards_chosen"] == pytest.approx(again[0]["rewards_chosen"], abs=1e-5)


TRL = json.loads((curves.FIXTURES / "vectors/dpo_trl.json").read_text())


def as_batch() -> tuple[Batch, torch.Tensor]:
    """Return TRL's rows in our order: a better answer, its worse one, the next pair."""
    rows, last = len(TRL["input_ids"]) // 2, torch.full((len(TRL["input_ids"]), 1), IGNORED)
    order = torch.arange(2 * rows).view(2, rows).t().flatten()
    ids, mask = (torch.tensor(TRL[name])[order] for name in ("input_ids", "completion_mask"))
    labels = torch.cat([ids.where(mask > 0, IGNORED)[:, 1:], last], 1)
    references = torch.tensor(TRL["ref_chosen_logps"] + TRL["ref_rejected_logps"])[order]
    fields = {"weight": torch.ones(2 * rows), "reference_logprobs": references}
    places = torch.arange(ids.shape[1]).expand(ids.shape)
    return Batch(ids, labels, (labels >= 0).float(), places, ids.numel(), fields=fields), order


def test_wpos_weights_are_trls() -> None:
    (case,) = (case for case in TRL["cases"] if case["use_weighting"])
    batch, order = as_batch()
    logits = torch.tensor(TRL["logits"], requires_grad=True)
    logprobs = logits[order].log_softmax(-1)
    known = logprobs.gather(-1, batch.labels.clamp(min=0)[..., None])[..., 0]
    output = torch.stack([known * (batch.labels >= 0), logprobs.mul(2).logsumexp(-1).detach()], -1)
    found = Dpo(DpoSettings(use_weighting=True)).loss(output, batch)
    (found.loss_sum / found.weight).backward()
    assert (found.loss_sum / found.weight).item() == pytest.approx(case["loss"], abs=1e-5)
    assert logits.grad.abs().sum().item() == pytest.approx(case["grad_abs_sum"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "the loss is 0.693147"),
        (["-s", "model.dpo.use_weighting=true"], "(rewards within 0 of 0)"),
        (["--loss", "sft"], None),
    ],
    ids=["dpo", "weighed pairs", "no reference"],
)
def test_the_first_step_proves_what_its_loss_lets_it_know(made, tmp_path, flags, says) -> None:
    told = tiny.quickly(
        "dpo", "--ckpt", made / "hf", "--data", made / "rows.jsonl", "-o", tmp_path / "run", "--mbs", 2,
        "--max-steps", 1, *curves.LIKE_TRL, *flags, talk=True,
    )  # fmt: skip
    assert says in told if says else "step 0:" not in told
