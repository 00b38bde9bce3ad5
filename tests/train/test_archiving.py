import shutil
from pathlib import Path

from nemoalign.checkpoint.open import open_source
from nemoalign.log import PlainReporter
from nemoalign.train.archiving import Archiver

LLAMA = Path(__file__).parents[1] / "fixtures/hf_llama"


def test_an_archive_is_made_beside_and_said(tmp_path, capsys) -> None:
    source = shutil.copytree(LLAMA, tmp_path / "source")
    archiver = Archiver(tmp_path / "megatron_gpt_sft", PlainReporter())
    archiver.start(source, 120)
    archiver.wait()
    made = tmp_path / "megatron_gpt_sft-step=120.nemo"
    assert open_source(made).weights.tensors
    assert f"saved as asked: {source} and {made}" in capsys.readouterr().err
    archiver.wait()
    archiver.look()
    assert capsys.readouterr().err == ""


def test_one_that_fails_is_a_warning_and_leaves_nothing(tmp_path, capsys) -> None:
    archiver = Archiver(tmp_path / "megatron_gpt_sft", PlainReporter())
    archiver.start(tmp_path / "nothing", 3)
    archiver.wait()
    assert "warning: The .nemo that was asked for could not be made" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
