"""What ``run.json`` of a real run says."""

import json

import pytest


@pytest.mark.slow
def test_it_says_what_was_asked_with_what_and_how_rows_are_trained(made) -> None:
    about = json.loads((made / "full/run.json").read_text())
    assert about["config"]["model.optim.lr"] == 0.001
    assert about["sources"]["model.optim.lr"] == "flag --lr"
    assert about["max_steps"] == 2
    assert "NeMo archive" in about["source"]
    assert about["versions"]["megatron-core"] == "0.16.1"
    assert len(about["samples"]) == 3
    for sample, line in zip(
        about["samples"], (made / "train.jsonl").read_text().splitlines(), strict=False
    ):
        row = json.loads(line)
        masked, trained = (
            "".join(text for kind, text in sample["parts"] if kind == wanted)
            for wanted in ("masked", "trained")
        )
        assert row["input"] in masked
        assert row["output"] in trained
        assert row["output"] not in masked
