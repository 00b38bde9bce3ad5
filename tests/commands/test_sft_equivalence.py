"""One reference loss curve per class; layout and packing must not matter. Through the real command, fp32."""

import pytest

from tests.commands import tiny

# Rows have up to 20 tokens: a step is several packs of 32 per row of a micro-batch.
COMMON = [
    "--seq-len",
    32,
    "--precision",
    "fp32",
    "--gbs",
    8,
    "--max-steps",
    10,
    "--lr",
    "1e-3",
    "--seed",
    7,
]
LAYOUTS = {
    "mbs1": ["--mbs", 1],
    "mbs4": ["--mbs", 4],
    "mbs4 apart": ["--mbs", 4, "--no-packing"],
    "tp2": ["--tp", 2],
    "tp2-sp, all recomputed": ["--tp", 2, "--sequence-parallel", "--mbs", 2, "--recompute", "full"],
    "pp2, attention recomputed": ["--pp", 2, "--mbs", 2, "--recompute", "selective"],
    "pp2-vp2": ["--pp", 2, "--vp", 2, "--mbs", 2],
    "dp2": ["--devices", 2, "--mbs", 1],
    "dp2 apart": ["--devices", 2, "--mbs", 2, "--no-packing"],
}
CHAIN = {
    3: ["--tp", 2, "--sequence-parallel", "--mbs", 2],
    6: ["--pp", 2, "--vp", 2, "--mbs", 2],
    10: ["--mbs", 2, "--no-packing"],
}
"""Steps until which one run directory goes on in each of several layouts."""
KINDS = {"full": [], "lora": ["--lora", 8, "--lora-targets", "all", "--lr", "5e-3"]}


def _curve(workshop, out, *flags: object) -> tuple[list[float], list[float], list[float]]:
    """Return train losses, gradient norms and validation losses of one run."""
    tiny.quickly(
        "sft", "--ckpt", workshop / "m.nemo", "--data", workshop / "train.jsonl",
        "--val", workshop / "val.jsonl", "-o", out, *COMMON, *flags,
    )  # fmt: skip
    train = tiny.read_metrics(out)
    assert [entry["step"] for entry in train] == list(range(1, 11))
    val = [entry["val_loss"] for entry in tiny.read_metrics(out, "val")]
    return [e["loss"] for e in train], [e["grad_norm"] for e in train], val


@pytest.fixture(scope="module", params=KINDS)
def reference(request, workshop, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, _curve(workshop, out, "--mbs", 1, "--no-packing", *KINDS[request.param])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_change_the_curve(layout, reference, workshop, tmp_path) -> None:
    kind, (losses, norms, val) = reference
    assert losses[-1] < losses[0] - 0.1, "the reference itself must learn"
    curve = _curve(workshop, tmp_path / "run", *KINDS[kind], *LAYOUTS[layout])
    assert curve[0] == pytest.approx(losses, abs=1e-5)
    assert curve[1] == pytest.approx(norms, rel=1e-4)
    assert curve[2] == pytest.approx(val, abs=1e-5)


@pytest.mark.slow
def test_a_run_that_changes_its_layout_gives_the_same_curve(reference, workshop, tmp_path) -> None:
    kind, (losses, norms, _) = reference
    for steps, layout in CHAIN.items():
        tiny.quickly(
            "sft", "--ckpt", workshop / "m.nemo", "--data", workshop / "train.jsonl", "-o",
            tmp_path / "run", *COMMON, *KINDS[kind], *layout, "--max-steps", steps,
            "--set", "model.optim.sched.max_steps=10",
        )  # fmt: skip
    train = tiny.read_metrics(tmp_path / "run")
    assert [entry["loss"] for entry in train] == pytest.approx(losses, abs=1e-5)
    assert [entry["grad_norm"] for entry in train] == pytest.approx(norms, rel=1e-4)
