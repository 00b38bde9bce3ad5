"""NeMo 2 directories: recognised by content, read as data."""

from __future__ import annotations

import pickle
import shutil

import pytest
import yaml

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.inspect import inspect
from nemoalign.checkpoint.open import open_source
from nemoalign.errors import ContentError, SourceError
from tests.checkpoint.mcore import HF, MCORE, NEMO2_CONFIG
from tests.checkpoint.models import FIXTURES, assert_same_tensors


@pytest.fixture
def nemo2(tmp_path):
    folder = tmp_path / "n2"
    shutil.copytree(MCORE / "stacked", folder / "weights")
    shutil.copytree(HF, folder / "context" / "nemo_tokenizer")
    write_model(folder)
    return folder


def write_model(folder, **changes):
    tokenizer = {"_target_": "a.AutoTokenizer", "pretrained_model_name": "nemo_tokenizer"}
    model = {
        "_target_": "nemo.collections.llm.gpt.model.llama.LlamaModel",
        "config": NEMO2_CONFIG | changes,
        "tokenizer": tokenizer,
    }
    (folder / "context" / "model.yaml").write_text(yaml.safe_dump(model))


def test_it_is_inspected_with_its_tokenizer(nemo2):
    report = inspect(nemo2)
    assert report["kind"] == "NeMo 2 directory"
    assert report["family"] == "llama"
    assert report["layout"] == "torch_dist"
    assert report["sizes"]["vocab"] == 40
    assert report["tokenizer"]["vocab"] == 40
    assert report["training"]["target"] == "nemo.collections.llm.gpt.model.llama.LlamaModel"


def test_what_nemo_2_itself_wrote_describes_the_weights(tmp_path, quiet):
    """A context of NeMo 2.3.2; its io.json alone leaves too much to its class."""
    folder = tmp_path / "n2"
    shutil.copytree(MCORE / "layers", folder / "weights")
    shutil.copytree(FIXTURES / "nemo2_llama" / "context", folder / "context")
    export(folder, tmp_path / "hf", reporter=quiet)
    assert_same_tensors(tmp_path / "hf", HF)
    assert open_source(folder).arch.rotary_base == 50000.0
    (folder / "context" / "model.yaml").unlink()
    with pytest.raises(ContentError, match="only what was given to LlamaConfig"):
        open_source(folder)


def test_of_the_tokenizers_folder_only_a_tokenizers_files_are_kept(nemo2):
    assert (nemo2 / "context" / "nemo_tokenizer" / "model.safetensors").exists()
    names = {"hf/config.json", "hf/generation_config.json", "hf/tokenizer.json"}
    assert set(open_source(nemo2).files) == names


@pytest.mark.parametrize("through_nemo", [False, True])
def test_it_becomes_the_model_of_transformers(nemo2, tmp_path, quiet, through_nemo):
    source = nemo2
    if through_nemo:
        source = tmp_path / "m.nemo"
        convert(nemo2, source, reporter=quiet)
    export(source, tmp_path / "hf", reporter=quiet)
    assert_same_tensors(tmp_path / "hf", HF)


def test_a_run_with_one_of_its_checkpoints_is_found(nemo2, tmp_path):
    run = tmp_path / "run" / "checkpoints"
    shutil.copytree(nemo2, run / "model--val_loss=1.00-step=10-consumed_samples=80.0-last")
    shutil.copytree(nemo2, run / "model--val_loss=1.00-step=20-consumed_samples=160.0-last")
    (run / "model--val_loss=1.00-step=20-consumed_samples=160.0-last-unfinished").touch()
    assert "step=10" in open_source(run.parent).path.name


def test_files_beside_its_description_are_never_loaded(nemo2):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    (nemo2 / "context" / "0fc1a6f2-1111-2222-3333-444455556666").write_bytes(pickle.dumps(Evil()))
    assert open_source(nemo2).vocab_size == 40


def test_a_tokenizer_outside_is_a_name_and_no_path(nemo2):
    model = yaml.safe_load((nemo2 / "context" / "model.yaml").read_text())
    model["tokenizer"]["pretrained_model_name"] = "../../../etc"
    (nemo2 / "context" / "model.yaml").write_text(yaml.safe_dump(model))
    source = open_source(nemo2)
    assert not source.files
    assert "does not hold its tokenizer" in source.warnings[0]


def test_a_description_of_another_model_is_refused(nemo2):
    write_model(nemo2, hidden_size=32)
    with pytest.raises(ContentError, match="asks for"):
        open_source(nemo2)


def test_a_save_that_never_ended_is_refused(nemo2):
    (nemo2 / "weights" / "metadata.json").unlink()
    with pytest.raises(SourceError, match="never completed"):
        open_source(nemo2)
