"""``--dry-run``: the numbers are those of the real run, and nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.plan import plan
from nemoalign.checkpoint.reshard import reshard
from nemoalign.checkpoint.targets.cut import ReshardOptions
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import ConflictError, ContentError
from tests.checkpoint.models import FIXTURES


def writer(command, source, target, **more):
    return lambda reporter: command(FIXTURES / source, target, reporter=reporter, **more)


CASES = {
    "convert": (convert, "hf_llama", {}),
    "export": (export, "llama_tp2_ranks.nemo", {}),
    "merged": (export, "llama.nemo", {"adapter": FIXTURES / "lora_tp1.nemo"}),
    "adapter": (export, "lora_tp1.nemo", {"adapter_only": True}),
    "reshard": (reshard, "llama.nemo", {"options": ReshardOptions(tp=2, format="ranks")}),
    "vit": (export, "vit_tp1.nemo", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_those_that_are_written_later(case, tmp_path, quiet):
    command, source, more = CASES[case]
    target = tmp_path / "deep" / ("out.nemo" if case in ("convert", "reshard") else "out")
    write = writer(command, source, target, **more)
    found = plan(FIXTURES / source, target, write, quiet)
    assert not list(tmp_path.iterdir())
    write(quiet)
    files = [target] if target.is_file() else list(target.glob("*.safetensors"))
    written = sum(file.stat().st_size for file in files)
    assert found["bytes"] <= written < found["bytes"] * 1.2 + 60_000
    assert found["tensors"] > 0
    json.dumps(found)


def test_what_the_command_would_refuse_is_refused(tmp_path, quiet):
    archive = FIXTURES / "gpt_tp1_dist.nemo"
    with pytest.raises(ContentError, match="no Hugging Face family"):
        plan(archive, tmp_path / "hf", writer(export, archive, tmp_path / "hf"), quiet)
    (tmp_path / "m.nemo").write_text("mine")
    with pytest.raises(ConflictError):
        plan(archive, tmp_path / "m.nemo", writer(convert, archive, tmp_path / "m.nemo"), quiet)


def test_warnings_are_kept(tmp_path, quiet, capsys):
    write = writer(convert, "llhf_dist_dir", tmp_path / "m.nemo")
    found = plan(FIXTURES / "llhf_dist_dir", tmp_path / "m.nemo", write, quiet)
    assert all(warning in capsys.readouterr().err for warning in found["warnings"])
    assert found["warnings"]


def test_a_proof_by_logits_takes_torch_and_the_model_in_fp32(tmp_path, quiet):
    options = WriteOptions(verify="logits")
    write = writer(convert, "hf_llama", tmp_path / "m.nemo", options=options)
    plain = plan(FIXTURES / "hf_llama", tmp_path / "m.nemo", write, quiet)
    found = plan(FIXTURES / "hf_llama", tmp_path / "m.nemo", write, quiet, verify="logits")
    assert found["memory_bytes"] > plain["memory_bytes"] + 10**9


def test_the_real_run_stays_below_the_predicted_memory(tmp_path, quiet):
    target = tmp_path / "m.nemo"
    found = plan(FIXTURES / "hf_llama", target, writer(convert, "hf_llama", target), quiet)
    command = [sys.executable, "-m", "nemoalign", "convert", FIXTURES / "hf_llama", "-o", target]
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True, check=True
    )
    assert 1024 * int(ended.stdout.splitlines()[-1]) < found["memory_bytes"]
