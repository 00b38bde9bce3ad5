"""From any layout to any other: equal to what NVIDIA's own code wrote, and to torch's own slices."""

from __future__ import annotations

import json
import re
import tarfile

import numpy as np
import pytest
import torch

from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.reshard import reshard
from nemoalign.checkpoint.targets.cut import ReshardOptions
from nemoalign.errors import ConfigError, ConflictError, ContentError
from tests.checkpoint.models import FIXTURES, state_of
from tests.checkpoint.rank_files import assert_same_files, load_ranks, shard

RANKS = FIXTURES / "gpt_tp2pp2_ranks.nemo"
DIST = FIXTURES / "gpt_tp1_dist.nemo"
VOCABULARY = 519
PADDED = ("embedding.word_embeddings.weight", "output_layer.weight")


@pytest.fixture
def go(tmp_path, quiet):
    """Reshard to a file named after its sizes."""

    def run(source, tp, **options):
        words = "-".join(f"{name}{value}" for name, value in options.items())
        target = tmp_path / f"{source.stem}-tp{tp}-{words}.nemo"
        reshard(source, target, ReshardOptions(tp=tp, **options), reporter=quiet)
        return target

    return run


def assert_same_model(found, expected):
    ours, theirs = open_source(found), open_source(expected)
    assert ours.weights.tensors.keys() == theirs.weights.tensors.keys()
    for name in theirs.weights.tensors:
        rows = theirs.vocab_size if name in PADDED else None
        np.testing.assert_array_equal(
            ours.weights.read(name)[:rows], theirs.weights.read(name)[:rows], name
        )


def test_one_directory_becomes_the_rank_files_that_nemo_wrote(go):
    """Tied embeddings, biases, learned positions: every key of all four files."""
    ours = go(DIST, 2, pp=2, format="ranks")
    assert_same_files(ours, RANKS, VOCABULARY)
    config, theirs = open_source(ours).config, open_source(RANKS).config
    changed = {key for key in config if config[key] != theirs.get(key)}
    assert changed == {"nemoalign"}


def test_rank_files_become_the_directory_that_nemo_wrote(go):
    ours, theirs = open_source(go(RANKS, 1, format="dist")), open_source(DIST)
    assert ours.layout == "torch_dist"
    for name, info in theirs.weights.tensors.items():
        assert ours.weights.tensors[name] == info
        rows = VOCABULARY if name in PADDED else None
        np.testing.assert_array_equal(
            ours.weights.read(name)[:rows], theirs.weights.read(name)[:rows]
        )
    assert {k for k in theirs.config if ours.config[k] != theirs.config[k]} == set()


@pytest.mark.parametrize(
    ("name", "own", "tp", "pp"),
    [
        ("llama_tp2_ranks.nemo", {"tp": 2}, 1, 4),
        ("chatsft_tp1_file.nemo", {"tp": 1}, 2, 1),
        ("gpt_tp2pp2_ranks.nemo", {"tp": 2, "pp": 2}, 1, 4),
    ],
)
@pytest.mark.parametrize("form", ["dist", "ranks"])
def test_there_and_back_gives_nemos_own_files(name, own, tp, pp, form, go):
    source = FIXTURES / name
    away = go(source, tp, pp=pp, format=form)
    assert_same_model(away, source)
    back = go(away, **own, format="ranks")
    assert_same_files(back, source, open_source(source).vocab_size)


@pytest.mark.parametrize("name", ["legacyllama_tp1_file.nemo", "legacygptO2_tp1_file.nemo"])
def test_names_from_before_megatron_core_are_kept(name, go):
    source = FIXTURES / name
    away = go(source, 2, pp=2)
    last = load_ranks(away)["tp_rank_01_pp_rank_001"]
    copy = "model.word_embeddings.weight"
    assert (copy in last) == open_source(source).arch.share_embeddings_and_output_weights
    assert all("language_model." in key or key == copy for key in last)
    assert open_source(away).legacy_config["mcore_gpt"] is False
    assert_same_files(go(away, 1), source, open_source(source).vocab_size)
    upgraded = open_source(go(away, 2, format="dist"))
    assert upgraded.legacy_config is None
    assert upgraded.config["mcore_gpt"] is True


def test_gate_and_up_that_were_apart_stay_apart(go, tmp_path):
    """As a swiglu of NeMo's own GPT has them: dense_h_to_4h and dense_h_to_4h_2."""
    whole = FIXTURES / "legacyllama_tp1_file.nemo"
    source = tmp_path / "apart"
    unpack(whole, source)
    ((_, tensors),) = load_ranks(whole).items()
    apart = {}
    for key, tensor in tensors.items():
        halves = tensor.chunk(2) if "dense_h_to_4h" in key else (tensor,)
        names = [key, key.replace("h_to_4h", "h_to_4h_2")]
        apart |= {n: half.clone() for n, half in zip(names, halves, strict=False)}
    torch.save(apart, source / "model_weights.ckpt")
    away = go(source, 2)
    for rank, file in enumerate(load_ranks(away).values()):
        assert file.keys() == apart.keys()
        for key, tensor in apart.items():
            if "h_to_4h" in key:
                assert torch.equal(file[key], tensor.chunk(2)[rank]), key
    back = load_ranks(go(away, 1))["model_weights.ckpt"]
    assert all(torch.equal(back[key], tensor) for key, tensor in apart.items())


def test_experts_of_two_expert_ranks_become_megatron_cores_rank_files(go):
    """Written by megatron-core at EP2 as a directory, and at TP2 as the state of each rank."""
    ours = load_ranks(go(FIXTURES / "mixtral_ep2_dist", 2, format="ranks"))
    files = [FIXTURES / f"mixtral_tp2_ranks/mp_rank_0{n}/model_weights.ckpt" for n in range(2)]
    theirs = [torch.load(path, weights_only=True) for path in files]
    for mine, other in zip(ours.values(), theirs, strict=True):
        assert mine.keys() == {key for key in other if "_extra_state" not in key}
        for key, tensor in mine.items():
            if not key.endswith(PADDED):
                assert torch.equal(tensor, other[key]), key
    for table in (f"model.{name}" for name in PADDED):  # NeMo's padding, which the other has not
        whole = torch.cat([file[table] for file in ours.values()])
        assert torch.equal(whole[:64], torch.cat([other[table] for other in theirs]))
        assert not whole[64:].any()


def unpack(archive, folder):
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 4), (1, 1)])
def test_every_rank_holds_the_slices_that_torch_cuts(tp, pp, go):
    """Of a Hugging Face model, packed by hand here: query groups, gate and up, heads of 16."""
    files = load_ranks(go(FIXTURES / "hf_llama", tp, pp=pp, format="ranks"))
    state = state_of(FIXTURES / "hf_llama")
    assert len(files) == tp * pp
    for name, tensors in files.items():
        ranks = [int(number) for number in re.findall(r"rank_(\d+)", name)]
        rank, stage, *_ = [*ranks, 0, 0]
        for key, found in tensors.items():
            whole = megatron_tensor(key, state, first_layer=stage * (4 // pp))
            assert torch.equal(found, shard(key, whole, tp, rank, gated=True)), (name, key)
    keys = [key for tensors in files.values() for key in tensors]
    assert len(keys) == tp * (3 + 4 * 6)


def megatron_tensor(key, state, first_layer):
    """Return a megatron-core tensor of the fixture's Hugging Face llama (4 heads, 2 groups of 16)."""
    tops = {
        "model.embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "model.decoder.final_layernorm.weight": "model.norm.weight",
        "model.output_layer.weight": "lm_head.weight",
    }
    if key in tops:
        return state[tops[key]]
    local, rest = re.fullmatch(r"model\.decoder\.layers\.(\d+)\.(.*)", key).groups()
    layer = f"model.layers.{first_layer + int(local)}."
    if rest == "self_attention.linear_qkv.weight":
        q, k, v = (state[f"{layer}self_attn.{p}_proj.weight"].split(16) for p in "qkv")
        return torch.cat([*q[:2], k[0], v[0], *q[2:], k[1], v[1]])
    if rest == "mlp.linear_fc1.weight":
        return torch.cat([state[f"{layer}mlp.{part}_proj.weight"] for part in ("gate", "up")])
    names = {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
        "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
        "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    }
    return state[layer + names[rest]]


@pytest.mark.parametrize(("tp", "pp", "form"), [(2, 1, "auto"), (2, 2, "auto"), (2, 1, "dist")])
def test_adapters_go_to_more_ranks_and_come_back(tp, pp, form, go):
    source = FIXTURES / "lora_tp1.nemo"
    away = go(source, tp, pp=pp, format=form)
    assert_same_files(go(away, 1, format="ranks"), source, vocabulary=0)


def test_adapter_matrices_are_cut_as_their_modules_cut_them(go):
    (whole,) = load_ranks(FIXTURES / "lora_tp1.nemo").values()
    files = load_ranks(go(FIXTURES / "lora_tp1.nemo", 2))
    for key, tensor in whole.items():
        row_parallel_input = "linear_in" in key and re.search("dense_attention|4htoh", key)
        for rank in range(2):
            if row_parallel_input:
                expected = tensor.chunk(2, dim=1)[rank]
            elif "hto4h_adapter.linear_out" in key:
                expected = torch.cat([half.chunk(2)[rank] for half in tensor.chunk(2)])
            else:
                expected = tensor.chunk(2)[rank]
            assert torch.equal(files[f"mp_rank_0{rank}"][key], expected), key


def test_the_settings_describe_the_new_layout_and_nothing_else_changes(go):
    ours, theirs = open_source(go(DIST, 2, pp=2, vp=2)), open_source(DIST)
    changed = {k for k in ours.config if ours.config[k] != theirs.config.get(k)}
    assert changed == {
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "nemoalign",
    }
    assert ours.config["virtual_pipeline_model_parallel_size"] == 2
    assert ours.weights.tensors[PADDED[0]].shape[0] == 768


def test_chunks_are_those_that_ranks_of_the_target_would_write(go):
    source = open_source(go(RANKS, 2, format="dist"))
    place = source.weights.place("decoder.layers.1.mlp.linear_fc2.weight")
    assert [chunk for chunk in place.store.chunks(place.key) if chunk[0][0] == 1] == [
        ((1, 0, 0), (1, 64, 64)),
        ((1, 0, 64), (1, 64, 64)),
    ]
    place = source.weights.place(PADDED[0])
    assert place.store.chunks(place.key) == [((0, 0), (384, 64)), ((384, 0), (384, 64))]
    assert not source.weights.read(PADDED[0])[VOCABULARY:].any()


def test_the_report_names_the_place_and_the_sum_of_every_tensor(go):
    target = go(RANKS, 1, pp=2)
    report = json.loads(target.with_name(f"{target.name}.conversion.json").read_text())
    rows = {row["source"]: row for row in report["tensors"]}
    files = ["tp_rank_00_pp_rank_000", "tp_rank_00_pp_rank_001"]
    assert rows[PADDED[0]]["target"] == {
        f"{files[0]}/model_weights.ckpt:model.embedding.word_embeddings.weight": [640, 64],
        f"{files[1]}/model_weights.ckpt:model.output_layer.weight": [640, 64],
    }
    assert len(set(rows[PADDED[0]]["crc32"])) == 1
    assert len(rows) == len(open_source(RANKS).weights.tensors)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tp": 4}, r"4 attention heads and 2 query groups .* --tp 4; use --tp 1 or 2"),
        ({"tp": 1, "pp": 3}, r"4 layers .* --pp 3; use --pp 1, 2 or 4"),
        ({"tp": 1, "ep": 2}, r"no experts, .* --ep 2; use --ep 1"),
        ({"tp": 1, "pp": 2, "vp": 2}, r"--vp 2 does not go with --format ranks"),
        ({"tp": 1, "pp": 2, "vp": 4, "format": "dist"}, r"--pp 2 x --vp 4"),
        ({"tp": 1, "vp": 2, "format": "dist"}, r"give --pp 2 or more"),
        ({"tp": 0}, r"--tp is 0"),
        ({"tp": 1, "format": "zarr"}, r"--format is zarr"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_those_that_can(options, match, tmp_path, quiet):
    with pytest.raises(ConfigError, match=match):
        reshard(RANKS, tmp_path / "x.nemo", ReshardOptions(**options), reporter=quiet)
    assert not list(tmp_path.iterdir())


def test_ranks_that_disagree_are_corruption(tmp_path, quiet):
    """One byte of one norm of rank 1 differs: the tensor is named and nothing is written."""
    content = bytearray(RANKS.read_bytes())
    norm = load_ranks(RANKS)["tp_rank_01_pp_rank_001"]["model.decoder.final_layernorm.weight"]
    places = [m.start() for m in re.finditer(re.escape(norm.numpy().tobytes()), content)]
    assert len(places) == 2
    content[places[1] + 5] ^= 1
    bad = tmp_path / "bad.nemo"
    bad.write_bytes(content)
    with pytest.raises(ContentError, match=r'"decoder.final_layernorm.weight" .* rank 1 holds'):
        reshard(bad, tmp_path / "x.nemo", ReshardOptions(tp=1), reporter=quiet)
    assert list(tmp_path.iterdir()) == [bad]


def test_an_existing_target_is_kept_unless_it_may_be_overwritten(tmp_path, quiet):
    target = tmp_path / "m.nemo"
    target.write_text("precious")
    with pytest.raises(ConflictError, match="--overwrite"):
        reshard(RANKS, target, ReshardOptions(tp=1), reporter=quiet)
    assert target.read_text() == "precious"
    reshard(RANKS, target, ReshardOptions(tp=1, overwrite=True), reporter=quiet)
    assert open_source(target).layout == "single file"
