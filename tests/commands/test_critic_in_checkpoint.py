"""A checkpoint with a critic inside is the policy's to every command, and the critic's where it is named."""

import json
import shutil

import pytest

from nemoalign.train.rotation import find_last
from nemoalign.train.sums import find_damage, write_sums
from tests.commands import tiny

pytestmark = pytest.mark.slow

SHORT = ["--precision", "fp32", "--gbs", 8, "--mbs", 4, "--max-steps", 2, "--lr", "1e-3"]
OF_A_RUN = ("progress.json", "random", "checksums.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of a policy, its last checkpoint alone, and a run whose last one holds a critic as well."""
    root = tmp_path_factory.mktemp("made")
    tiny.make_llama(root / "hf")
    tiny.make_classifier(root / "rm")
    tiny.write_rows(root / "rows.jsonl", tiny.rows(16, seed=1))
    pairs = [{"prompt": row["input"], "chosen": row["output"], "rejected": "no"} for row in tiny.rows(16, seed=2)]  # fmt: skip
    tiny.write_rows(root / "pairs.jsonl", pairs)
    sft = ["sft", "--ckpt", root / "hf", "--data", root / "rows.jsonl", *SHORT]
    tiny.quickly(*sft, "-o", root / "sft")
    tiny.quickly("rm", "--ckpt", root / "rm", "--data", root / "pairs.jsonl", *SHORT, "-o", root / "critic")  # fmt: skip
    both = shutil.copytree(root / "sft", root / "both", symlinks=True)
    critic = find_last(root / "critic/checkpoints")
    last = find_last(both / "checkpoints")
    shutil.copytree(critic, last / "critic", ignore=shutil.ignore_patterns(*OF_A_RUN))
    (last / "checksums.json").unlink()
    write_sums(last)
    (both / "summary.json").unlink()  # so that the run ends once more
    (both / "megatron_gpt_sft.nemo").unlink()
    tiny.quickly(*sft, "-o", both)
    return root, find_last(root / "sft/checkpoints"), last


def assert_same(left, right) -> None:
    tiny.quickly("inspect", left, "--diff", right)


def test_a_run_that_ends_leaves_an_archive_of_each(made) -> None:
    root, _, _ = made
    both = root / "both"
    summary = json.loads((both / "summary.json").read_text())
    assert summary["archive"] == str(both / "megatron_gpt_sft.nemo")
    assert summary["critic_archive"] == str(both / "megatron_gpt_sft_critic.nemo")
    assert_same(both / "megatron_gpt_sft.nemo", root / "sft/megatron_gpt_sft.nemo")
    assert_same(both / "megatron_gpt_sft_critic.nemo", root / "critic/megatron_gpt_rm.nemo")
    # A run's directory is its policy, which has an archive of its own.
    assert json.loads(tiny.quickly("inspect", both, "--json"))["path"] == summary["archive"]


def test_inspect_sees_the_policy_alone(made) -> None:
    _, alone, both = made
    found, expected = (json.loads(tiny.quickly("inspect", p, "--json")) for p in (both, alone))
    sums = [path.joinpath("checksums.json").stat().st_size for path in (both, alone)]
    assert found["size_bytes"] - sums[0] == expected["size_bytes"] - sums[1]
    for report in (found, expected):
        del report["size_bytes"], report["path"], report["what"]
    assert found == expected


def test_what_is_made_of_it_is_the_policy(made, tmp_path) -> None:
    _, alone, both = made
    for name, *typed in [
        ("m.nemo", "convert"),
        ("hf", "convert", "--to", "hf"),
        ("tp2.nemo", "reshard", "--tp", 2, "--with-optimizer"),
        ("ranks.nemo", "reshard", "--tp", 2, "--format", "ranks"),
        ("exported", "export"),
    ]:
        command, *options = typed
        for home, source in (("both", both), ("alone", alone)):
            (tmp_path / home).mkdir(exist_ok=True)
            tiny.quickly(command, source, "-o", tmp_path / home / name, *options)
        assert_same(tmp_path / "both" / name, tmp_path / "alone" / name)
    assert_same(both, alone)
    size = [path.stat().st_size for path in tmp_path.glob("*/tp2.nemo")]
    assert size[0] == size[1]


def test_damage_to_the_critic_is_the_critics_and_resuming_finds_it(made, tmp_path) -> None:
    _, _, last = made
    both = shutil.copytree(last, tmp_path / last.name)
    (file, *_) = sorted((both / "critic/model_weights").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert json.loads(tiny.quickly("inspect", "--check", both, "--json"))["intact"]
    tiny.quickly("inspect", "--check", both / "critic", code=6)
    assert find_damage(both) == f"critic/model_weights/{file.name} is not what was written"


def test_the_critic_is_a_reward_model_to_every_command(made, tmp_path) -> None:
    root, _, last = made
    report = json.loads(tiny.quickly("inspect", last / "critic", "--json"))
    assert report["reward_head"]
    tiny.quickly("convert", last / "critic", "-o", tmp_path / "critic.nemo")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", [{"text": "a meow"}, {"text": "a bark, 3 times."}])  # fmt: skip
    found = []
    for ckpt in (last / "critic", tmp_path / "critic.nemo", root / "critic"):
        tiny.quickly("rm", "--ckpt", ckpt, "--score", rows, "-o", tmp_path / "scores.jsonl", "--precision", "fp32", "--overwrite")  # fmt: skip
        lines = (tmp_path / "scores.jsonl").read_text().splitlines()
        found.append([json.loads(line)["score"] for line in lines])
    assert len(found[0]) == 2
    assert found[0] == found[1] == found[2]
