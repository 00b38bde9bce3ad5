"""What inspect tells of a ViT, through the real command."""

import json

from nemoalign.cli import app
from tests.checkpoint.vits import NEMO_VIT, fixture_state, save_nemo, second_generation
from tests.cli.running import HEAVY, run


def test_the_command_shows_what_it_is():
    ended = run("inspect", NEMO_VIT)
    assert ended.code == 0, ended.err
    assert not (HEAVY - {"numpy"}) & ended.modules
    lines = dict(line.split("  ", 1) for line in ended.out.splitlines()[2:])
    shown = {name: value.strip() for name, value in lines.items()}
    assert shown["family"] == "vit / ViTForImageClassification"
    assert shown["images"] == "16 x 16, 3 channels, patches of 4"
    assert shown["head"] == "classifier, 10 classes"
    assert shown["generation"].startswith("1: ")


def shown_json(capsys, *arguments):
    assert app.run(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_counts_the_parameters_of_every_part(tmp_path, capsys):
    state = second_generation(fixture_state())
    path = save_nemo(tmp_path / "m.nemo", state, kv_channels=16, bias_activation_fusion=True)
    report = shown_json(capsys, path)
    parts = report["parameters"]
    assert parts["total"] == sum(tensor.numel() for tensor in state.values())
    assert parts["head"] == 650
    assert report["generation"].startswith("2: ")
    assert report["sizes"]["activation"] == "gelu_pytorch_tanh"
    assert report["size_bytes"] == path.stat().st_size


def test_what_keeps_it_from_hugging_face_is_listed(tmp_path, capsys):
    path = save_nemo(tmp_path / "m.nemo", fixture_state(), activation="squared-relu")
    report = shown_json(capsys, path)
    assert report["hf_architecture"] is None
    assert report["not_in_hugging_face"] == ["its activation is squared-relu"]


def test_tensors_and_values_are_shown_like_any_models(capsys):
    rows = shown_json(capsys, NEMO_VIT, "--tensors", "head.*")
    assert [(row["name"], row["shape"]) for row in rows] == [
        ("head.weight", [10, 64]),
        ("head.bias", [10]),
    ]
    assert shown_json(capsys, NEMO_VIT, "-k", "patch_dim") == 4
    assert app.run(["inspect", str(NEMO_VIT), "--template"]) == 4


def test_training_is_refused_in_one_sentence(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input": "a", "output": "b"}\n')
    ended = run("sft", "--ckpt", NEMO_VIT, "--data", rows, "-o", tmp_path / "run")
    assert ended.code == 4
    assert "image classifier" in ended.err
