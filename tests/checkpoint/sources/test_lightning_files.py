"""Which of the files of a run is meant."""

from __future__ import annotations

import pytest
import torch

from nemoalign.checkpoint.sources.lightning_files import (
    is_distributed,
    is_torch_file,
    newest,
    saved_at,
    saved_names,
)
from nemoalign.errors import ContentError, SourceError

HEAD = "megatron_gpt--val_loss=0.43-"


def folder_of(home, *names):
    for name in names:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".ckpt"):
            torch.save({}, path)
        else:
            path.touch()
    return home


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a.ckpt"], "a.ckpt"),
        ([f"{HEAD}step=9-consumed_samples=9.0.ckpt", f"{HEAD}step=10.ckpt"], f"{HEAD}step=10.ckpt"),
        ([f"{HEAD}step=9.ckpt", f"{HEAD}step=9-last.ckpt"], f"{HEAD}step=9-last.ckpt"),
        ([f"{HEAD}step=9.ckpt", f"{HEAD}step=9-v1.ckpt"], f"{HEAD}step=9-v1.ckpt"),
        ([f"{HEAD}step=9-last.ckpt", f"{HEAD}step=9-last-v2.ckpt"], f"{HEAD}step=9-last-v2.ckpt"),
        ([f"{HEAD}step=9.ckpt", f"{HEAD}step=10-EMA.ckpt"], f"{HEAD}step=9.ckpt"),
        (["a--step=9-EMA.ckpt"], "a--step=9-EMA.ckpt"),
        (["a--step=9.ckpt", "a--step=10.ckpt", "a--step=10-unfinished"], "a--step=9.ckpt"),
        (["a--step=9.ckpt", ".a--step=10.ckpt"], "a--step=9.ckpt"),
        (["a--step=9.ckpt", "other.ckpt"], "a--step=9.ckpt"),
        (["a--step=9.ckpt", "a--step=10/metadata.json"], "a--step=10"),
        (["a--step=9/metadata.json", "a--step=10/__0_0.distcp"], "a--step=9"),
        (["a--ppo_optimization_step=99-step=1.ckpt", "a--step=2.ckpt"], "a--step=2.ckpt"),
        (["mp_rank_00/a--step=3.ckpt", "mp_rank_01/a--step=3.ckpt"], "a--step=3.ckpt"),
        (
            ["mp_rank_00/a--step=3.ckpt", "mp_rank_00/a--step=4.ckpt", "a--step=4-unfinished"],
            "a--step=3.ckpt",
        ),
        (["tp_rank_00_pp_rank_000/a--step=3.ckpt"], "a--step=3.ckpt"),
        (["notes.txt", "x/y.ckpt"], None),
        (["a--step=1-unfinished", "a--step=1.ckpt"], None),
    ],
)
def test_the_newest_complete_one_is_chosen(names, chosen, tmp_path):
    folder = folder_of(tmp_path, *names)
    assert newest(saved_names(folder)) == (None if chosen is None else tmp_path / chosen)


def test_without_steps_in_their_names_they_must_be_named(tmp_path):
    folder_of(tmp_path, "a.ckpt", "b.ckpt")
    with pytest.raises(SourceError, match=r"2 checkpoints \(a.ckpt, b.ckpt\).*Name one of them"):
        newest(saved_names(tmp_path))


def test_links_are_passed_over(tmp_path):
    folder_of(tmp_path, "a--step=1.ckpt")
    (tmp_path / "best--step=2.ckpt").symlink_to(tmp_path / "a--step=1.ckpt")
    assert saved_names(tmp_path) == [tmp_path / "a--step=1.ckpt"]
    assert saved_names(tmp_path / "missing") == []


def test_all_ranks_go_by_one_name(tmp_path):
    names = [f"tp_rank_{tp:02d}_pp_rank_{pp:03d}/a.ckpt" for pp in range(2) for tp in range(2)]
    folder_of(tmp_path, *names)
    expected = {(pp, tp): tmp_path / names[2 * pp + tp] for pp in range(2) for tp in range(2)}
    for path in (tmp_path / "a.ckpt", tmp_path / names[3]):
        saved = saved_at(path)
        assert saved.path == tmp_path / "a.ckpt"
        assert saved.ranks == expected
    assert sorted(saved.container().members) == sorted(names)
    assert saved_at(tmp_path / "b.ckpt") is None


def test_a_single_file_and_a_directory(tmp_path):
    folder_of(tmp_path, "a.ckpt", "b/metadata.json", "b/common.pt", "notes.txt")
    assert saved_at(tmp_path / "a.ckpt").ranks == {(0, 0): tmp_path / "a.ckpt"}
    assert sorted(saved_at(tmp_path / "b").container().members) == ["common.pt", "metadata.json"]
    assert saved_at(tmp_path / "notes.txt") is None
    assert saved_at(tmp_path) is None
    assert is_distributed(tmp_path / "b")
    assert not is_distributed(tmp_path)
    assert is_torch_file(tmp_path / "a.ckpt")
    assert not is_torch_file(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["mp_rank_00/a.ckpt", "a.ckpt", "a-EMA.ckpt"])
def test_what_was_never_completed_is_refused(name, tmp_path):
    folder_of(tmp_path, name, "a-unfinished")
    with pytest.raises(SourceError, match="a-unfinished lies beside it"):
        saved_at(tmp_path / name)


@pytest.mark.parametrize("folder", ["fsdp_shard_00000", "mp_rank_00_fsdp_shard_00001"])
def test_shards_of_fsdp_are_refused(folder, tmp_path):
    folder_of(tmp_path, f"{folder}/a.ckpt")
    for act in (lambda: saved_names(tmp_path), lambda: saved_at(tmp_path / folder / "a.ckpt")):
        with pytest.raises(ContentError, match="shard of FSDP"):
            act()
