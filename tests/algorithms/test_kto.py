"""KTO as a command: TRL's ten steps, any layout; NeMo-Aligner's own five on its own batches."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemoalign.algorithms.kto import Kto
from nemoalign.checkpoint.open import open_source
from nemoalign.config.architecture import Architecture
from nemoalign.config.preference import KtoSettings
from nemoalign.config.schema import OptimConfig
from nemoalign.data.collate import IGNORED, Batch
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.load import load_weights
from nemoalign.model.reference import Copies
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.train.learner import Learner
from tests.algorithms import curves

TRLS_PARTNERS = ["-s", "model.kto.mismatched_answer=previous"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return curves.make(tmp_path_factory.mktemp("kto"), "kto")


@pytest.mark.slow
def test_ten_steps_are_trls(made, tmp_path) -> None:
    found = curves.run("kto", made, tmp_path / "run", "--mbs", 2, *TRLS_PARTNERS)
    for ours, theirs in zip(found, curves.stored("kto")["steps"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours["kl"] == pytest.approx(theirs["kl"], abs=1e-4)
        for name in ("chosen", "rejected"):
            # A step without such a row has no mean of it, with either of the two.
            assert (f"rewards_{name}" in ours) == (f"rewards/{name}" in theirs)
            if f"rewards_{name}" in ours:
                assert ours[f"rewards_{name}"] == pytest.approx(theirs[f"rewards/{name}"], abs=1e-4)


@pytest.mark.slow
def test_the_curve_depends_on_no_layout(made, tmp_path) -> None:
    expected = curves.run("kto", made, tmp_path / "one", "--mbs", 1, steps=3)
    for name, flags in curves.LAYOUTS.items():
        found = curves.run("kto", made, tmp_path / name, *flags, steps=3)
        curves.assert_close(found, expected, name, within=5e-5)


def batch(rows: list, labels: list, **fields: torch.Tensor) -> Batch:
    """Return NeMo-Aligner's micro-batch; its labels still stand on their own tokens."""
    tokens, unshifted = torch.tensor(rows), torch.tensor(labels)
    last = torch.full((len(rows), 1), IGNORED)
    shifted = torch.cat([unshifted[:, 1:], last], 1)
    places = torch.arange(tokens.shape[1]).expand(tokens.shape).contiguous()
    known = {"weight": torch.ones(len(rows)), **fields}
    return Batch(tokens, shifted, (shifted >= 0).float(), places, tokens.numel(), fields=known)


def test_steps_are_nemo_aligners_where_the_kl_is_a_micro_batchs() -> None:
    oracle = json.loads((curves.FIXTURES / "align/nemo_aligner_kto.json").read_text())
    source = open_source(curves.FIXTURES / "llama.nemo")
    arch, layout = Architecture.from_nemo(source.config), ParallelLayout(1)
    rate = oracle["optimizer"]["lr"]
    with start(layout, seed=1) as backend:
        chunks = build_model(
            arch, source.vocab_size, layout, precision="fp32", settings=ModelSettings()
        )
        load_weights(chunks, source.weights, arch, layout, source.vocab_size)
        algorithm = Kto(KtoSettings(ref_policy_kl_penalty=0.2, kl_estimate="micro_batch"))
        algorithm.reference = Copies(chunks, is_start=True)
        optim = OptimConfig(lr=rate, weight_decay=0.0)
        learner = Learner(chunks, algorithm, backend, optim, grad_clip=0.0)
        stored = {tuple(step["rows"]): step["batch"] for step in oracle["steps"] if "batch" in step}
        for step in oracle["steps"]:
            given, micro_batches = stored[tuple(step["rows"])], []
            for rows in (slice(0, 2), slice(2, 4)):
                good = torch.tensor(given["preference"][rows]).float()
                mismatched = batch(given["kl_samples"][rows], given["kl_sample_labels"][rows])
                own = batch(given["samples"][rows], given["sample_labels"][rows], is_desirable=good)
                micro_batches.append(replace(own, mismatched=mismatched))
            found = learner.step(micro_batches, rate)
            assert found.metrics["loss"] == pytest.approx(step["loss"], abs=1e-5)
            assert found.grad_norm == pytest.approx(step["grad_norm"], rel=1e-5)
            if "batch" in step:  # later it logs a mean of clamped rows, which is not its loss' z
                assert found.metrics["kl"] == pytest.approx(step["metrics"]["kl"], abs=1e-5)
        learned = dict(chunks[0].named_parameters())
        curves.assert_final_weights(lambda name: learned[in_model(name)].detach().numpy(), oracle)


def in_model(name: str) -> str:
    """Return what megatron-core's own layers call a norm that Transformer Engine keeps in a linear."""
    for linear, norm in (
        ("self_attention.linear_qkv", "input_layernorm"),
        ("mlp.linear_fc1", "pre_mlp_layernorm"),
    ):
        name = name.replace(f"{linear}.layer_norm_weight", f"{norm}.weight")
    return name


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_log_ratios_a_token_are_nemo_aligners_too(number) -> None:
    vectors = json.loads((curves.FIXTURES / "vectors/kto.json").read_text())
    case, labels = vectors["cases"][number], torch.tensor(vectors["labels"])[:4]
    logprobs = torch.tensor(vectors["pi_logprobs"])[:4]
    reference = (torch.tensor(vectors["refs"][case["ref"]])[:4] * (labels > -1)).sum(1)
    known = {
        "reference_logprobs": reference,
        "is_desirable": torch.tensor(case["preferences"]),
        "kl": torch.tensor(case["kl"]),
        "weight": torch.ones(4),
    }
    places = torch.arange(labels.shape[1]).expand(labels.shape)
    own = Batch(labels, labels, (labels > -1).float(), places, labels.numel(), fields=known)
    settings = KtoSettings(
        ref_policy_kl_penalty=case["beta"],
        desirable_loss_weight=case["desirable"],
        undesirable_loss_weight=case["undesirable"],
        preference_average_log_probs=case["average_log_probs"],
    )
    found = Kto(settings).loss(logprobs, own)
    assert (found.loss_sum / found.weight).item() == pytest.approx(case["loss"], abs=2e-6)
