"""Reward models as a command: TRL's ten steps, NeMo-Aligner's losses, any layout, LoRA and its head."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForSequenceClassification

from nemoalign.algorithms.rm import Rm
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.settings.reward import described_head
from nemoalign.config.reward import RmSettings
from nemoalign.log import PlainReporter
from tests.commands import tiny

TRL = json.loads((Path(__file__).parents[1] / "fixtures/trl/rm.json").read_text())
VECTORS = json.loads((Path(__file__).parents[1] / "fixtures/vectors/reward_model.json").read_text())
ROWS = TRL["rows"]
QUIET = PlainReporter(quiet=True)
PLAIN = ["--precision", "fp32", "--schedule", "constant", "--warmup", 0, "--weight-decay", 0]
LAYOUTS = {
    "TP2 SP": ["--mbs", 2, "--tp", 2, "--sequence-parallel"],
    "DP2": ["--mbs", 1, "--devices", 2],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("rm")
    tiny.make_llama(root / "hf")
    tiny.make_classifier(root / "classifier")
    tiny.write_rows(root / "pairs.jsonl", ROWS)
    return root


def rm(
    made: Path, out: Path, *flags: object, steps: int = 3, ckpt: str = "hf", lr: float = 2e-4
) -> list[dict]:
    tiny.quickly(
        "rm", "--ckpt", made / ckpt, "--data", made / "pairs.jsonl", "-o", out, "--gbs", 4,
        "--max-steps", steps, "--seq-len", 256, "--lr", lr, *PLAIN, *flags,
    )  # fmt: skip
    return tiny.read_metrics(out)


def ids(tokenizer, row: dict, side: str) -> torch.Tensor:
    return torch.tensor([[*tokenizer(row["prompt"] + row[side])["input_ids"], 2]])


@pytest.mark.slow
def test_ten_steps_are_trls_and_export_gives_transformers_the_same_rewards(made, tmp_path) -> None:
    found = rm(
        made, tmp_path / "run", "--mbs", 2, "--center-rewards", 0.01, "--val", made / "pairs.jsonl",
        "-s", "model.optim.betas=[0.9,0.999]", ckpt="classifier", steps=10, lr=1e-3,
    )  # fmt: skip
    for ours, theirs in zip(found, TRL["steps"], strict=True):
        for key, name in (("loss", "loss"), ("margin", "margin"), ("rewards_mean", "mean_reward")):
            assert ours[key] == pytest.approx(theirs[name], abs=1e-4), key
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-4)
        assert ours["accuracy"] == theirs["accuracy"]
    export(tmp_path / "run", tmp_path / "exported", reporter=QUIET)
    model = LlamaForSequenceClassification.from_pretrained(tmp_path / "exported").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        chosen, rejected = (
            torch.cat([model(ids(tokenizer, row, side)).logits[:, 0] for row in ROWS])
            for side in ("chosen", "rejected")
        )
    after, both = tiny.read_metrics(tmp_path / "run", "val")[-1], torch.cat([chosen, rejected])
    assert after["val_rewards_chosen"] == pytest.approx(chosen.mean().item(), abs=1e-5)
    assert after["val_rewards_rejected"] == pytest.approx(rejected.mean().item(), abs=1e-5)
    assert after["val_rewards_std"] == pytest.approx(both.std(correction=0).item(), abs=1e-5)


def one_batch(fields: dict[str, list], weights: list[float]) -> SimpleNamespace:
    numbers = {name: torch.tensor(values, dtype=torch.float32) for name, values in fields.items()}
    return SimpleNamespace(fields={**numbers, "weight": torch.tensor(weights)})


def test_a_batch_of_pairs_has_nemo_aligners_loss_and_a_filler_counts_for_nothing() -> None:
    outputs = torch.tensor(VECTORS["outputs"])[:, 0]
    sides = torch.stack([outputs[:4], outputs[4:]], 1).flatten()
    rewards = torch.cat([sides, torch.tensor([9.0, -9.0])])[:, None]
    batch = one_batch({"margin": [0.0] * 10}, [1.0] * 8 + [0.0] * 2)
    result = Rm(RmSettings()).loss(rewards, batch)
    assert result.loss_sum.item() == pytest.approx(sum(VECTORS["per_pair_loss"]), abs=1e-5)
    assert result.weight.item() == 4
    accuracy = result.metrics["accuracy"]
    assert (accuracy.total / accuracy.count).item() == VECTORS["acc"]


def test_missing_labels_and_fillers_count_for_nothing() -> None:
    case = VECTORS["regression"]
    predicted, labels = torch.tensor(case["pred"]), torch.tensor(case["labels"])
    predicted = torch.cat([predicted, torch.full_like(predicted[:1], 7.0)])
    labels = torch.cat([labels, torch.zeros_like(labels[:1])])
    algorithm = Rm(RmSettings(reward_model_type="regression", loss_mask_val=case["mask_val"]))
    algorithm.meet(SimpleNamespace(attributes=tuple(map(str, range(labels.shape[1])))))
    fields = {f"label_{n}": column.tolist() for n, column in enumerate(labels.unbind(1))}
    result = algorithm.loss(predicted, one_batch(fields, [1.0] * (len(labels) - 1) + [0.0]))
    assert (result.loss_sum / result.weight).item() == pytest.approx(case["loss"], abs=2e-6)
    assert set(result.metrics) == set(algorithm.metric_names)


@pytest.mark.parametrize(
    "case", VECTORS["bt"]["cases"], ids=lambda case: f"{case['loss_func']} {case['label']}"
)
def test_graded_pairs_compare_the_attribute_that_nemo_aligner_compares(case) -> None:
    rewards = torch.tensor(VECTORS["bt"]["outputs"])
    batch = one_batch({"strength": [case["label"]] * 2}, [1.0, 1.0])
    settings = RmSettings(reward_model_type="regression", loss_func=case["loss_func"])
    result = Rm(settings).loss(rewards, batch)
    assert result.loss_sum.item() == pytest.approx(case["loss"], abs=2e-6)
    assert result.weight.item() == 1


@pytest.mark.slow
def test_the_curve_depends_on_no_layout(made, tmp_path) -> None:
    expected = rm(made, tmp_path / "one", "--mbs", 4, "--no-packing")
    for name, flags in LAYOUTS.items():
        found = rm(made, tmp_path / name, *flags)
        for ours, theirs in zip(found, expected, strict=True):
            for key in ("loss", "accuracy", "margin", "rewards_chosen", "rewards_std"):
                assert ours[key] == pytest.approx(theirs[key], abs=2e-5), (name, key)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4), name


@pytest.mark.slow
def test_lora_goes_on_in_another_layout_and_its_head_goes_with_it(made, tmp_path) -> None:
    lora = ["--lora", 4, "--lora-targets", "all", "-s", "model.optim.sched.max_steps=3"]
    expected = rm(made, tmp_path / "one", *lora, "--mbs", 2)
    rm(made, tmp_path / "two", *lora, steps=1)
    found = rm(made, tmp_path / "two", *lora, "--pp", 2)
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("loss", "grad_norm", "rewards_chosen"):
            assert ours[key] == pytest.approx(theirs[key], abs=2e-5), key
    source = open_source(tmp_path / "two")
    assert "LoRA adapter of a reward model" in source.describe()
    assert described_head(source) == {"outputs": 1, "type": "binary_ranking", "dtype": "float32"}
    export(tmp_path / "two", tmp_path / "peft", adapter_only=True, reporter=QUIET)
    saved = load_file(tmp_path / "peft/adapter_model.safetensors")
    trained = source.adapter.weights.read("rm_head.weight")
    assert (saved["base_model.model.score.weight"].numpy() == trained).all()
    peft = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert (peft["task_type"], peft["modules_to_save"]) == ("SEQ_CLS", ["score"])
    export(tmp_path / "two", tmp_path / "merged", reporter=QUIET)
    model = LlamaForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    tiny.quickly(
        "rm", "--score", made / "pairs.jsonl", "--ckpt", tmp_path / "two", "--precision", "fp32",
        "--gbs", 16, "-o", tmp_path / "scores.jsonl",
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [(line["row"], line["answer"]) for line in lines] == [
        (row, side) for row in range(1, len(ROWS) + 1) for side in ("chosen", "rejected")
    ]
    with torch.no_grad():
        for line in lines:
            tokens = ids(tokenizer, ROWS[line["row"] - 1], line["answer"])
            assert line["score"] == pytest.approx(model(tokens).logits.item(), abs=1e-4)
            assert (line["tokens"], line["truncated"]) == (tokens.shape[1], False)
