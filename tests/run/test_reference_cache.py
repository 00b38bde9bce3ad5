"""Log-probs computed once serve every run with the same reference, and no other."""

import pytest

from tests.algorithms import curves
from tests.commands import tiny


@pytest.mark.slow
def test_another_run_with_the_same_reference_computes_nothing_and_another_model_all(
    tmp_path,
) -> None:
    made = curves.make(tmp_path, "dpo")
    tiny.make_llama(tmp_path / "other", rms_norm_eps=1e-4)  # the same weights, other numbers
    told = []
    for name, model, flags in (
        ("lora", "hf", ["--lora", 4]),
        ("all weights", "hf", ["--tp", 2]),
        ("other", "other", []),
    ):
        said = tiny.quickly(
            "dpo", "--ckpt", made / model, "--data", made / "rows.jsonl", "-o", tmp_path / name,
            "--max-steps", 1, *curves.LIKE_TRL, "--ref-cache", *flags,
            "-s", f"model.data.train_ds.index_mapping_dir={tmp_path / 'kept'}", talk=True,
        )  # fmt: skip
        (line,) = [line for line in said.splitlines() if "log-probs of" in line]
        told.append(line)
        assert "step 0: policy and reference agree" in said
    assert "log-probs of 8 answers computed" in told[0]
    assert ", 0 were known" in told[0]
    assert "log-probs of 0 answers computed" in told[1]
    assert ", 8 were known" in told[1]
    assert "log-probs of 8 answers computed" in told[2]
    assert len(list((tmp_path / "kept/reference").iterdir())) == 2
