"""What a policy is compared with is told with its memory, and is the same wherever it is kept."""

import pytest

from tests.algorithms import curves
from tests.commands import tiny


@pytest.mark.slow
def test_a_reference_in_the_hosts_memory_is_the_one_beside_the_model(tmp_path) -> None:
    made = curves.make(tmp_path, "kto")
    expected = curves.run("kto", made, tmp_path / "beside", "--mbs", 2, steps=2)
    told = tiny.quickly(
        "kto", "--ckpt", made / "hf", "--data", made / "rows.jsonl", "-o", tmp_path / "host", "--mbs", 2,
        "--max-steps", 2, *curves.LIKE_TRL, *curves.BETAS, "-s", "model.kto.reference_on_host=true",
        talk=True,
    )  # fmt: skip
    assert "reference policy: a copy in the host's memory, 0.9 MB a rank" in told
    curves.assert_close(tiny.read_metrics(tmp_path / "host"), expected, "host", within=0)


@pytest.mark.slow
def test_a_reward_model_is_no_reference(tmp_path) -> None:
    made = curves.make(tmp_path, "dpo")
    tiny.make_classifier(tmp_path / "rm")
    said = tiny.quickly(
        "dpo", "--ckpt", made / "hf", "--data", made / "rows.jsonl", "-o", tmp_path / "run", "--mbs", 2,
        "--max-steps", 2, *curves.LIKE_TRL, *curves.BETAS, "--ref", tmp_path / "rm", talk=True, code=4,
    )  # fmt: skip
    assert "rm is a reward model: it scores answers and writes none" in said
