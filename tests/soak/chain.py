"""One run directory through many blows to its end, beside the same run left in peace."""

import random
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.commands import tiny
from tests.soak.blows import Blow, Tally, damage_newest, room_to_fail, strike
from tests.soak.watched import Watched, complete_steps, read_lines

LAYOUTS = {
    "1 rank": [],
    "TP2": ["--tp", 2],
    "PP2": ["--pp", 2],
    "DP2": ["--devices", 2],
    "TP2 LoRA": ["--tp", 2, "--lora", 8],
}
COMPARED = ("loss", "grad_norm", "lr", "consumed_samples", "epoch", "val_loss")
STEPS_A_BLOW = 4


@dataclass(frozen=True)
class Material:
    """A tiny model and rows, shared by all runs."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> "Material":
        """Make them below ``root``."""
        tiny.make_llama(root / "hf")
        tiny.quickly("convert", root / "hf", "-o", root / "m.nemo")
        tiny.write_rows(root / "train.jsonl", tiny.rows(64, seed=1))
        tiny.write_rows(root / "val.jsonl", tiny.rows(60, seed=2))
        return cls(root)

    def command(self, run: Path, steps: int, flags) -> list:
        """Return the arguments of one run."""
        return [
            "sft", "--ckpt", self.root / "m.nemo", "--data", self.root / "train.jsonl",
            "--val", self.root / "val.jsonl", "-o", run, "--precision", "fp32", "--gbs", 4,
            "--mbs", 2, "--lr", "1e-3", "--epochs", 100, "--max-steps", steps, "--val-every", 4,
            "--save-every", 1, "--keep-top", 2, *flags,
        ]  # fmt: skip


class Chain:
    """A run that is struck again and again and must end as if nothing had happened."""

    def __init__(self, material: Material, name: str, flags, blows: list[Blow], seed: int) -> None:
        self.name = name
        self.blows = blows
        self.draw = random.Random(f"{seed} {name}")
        steps = STEPS_A_BLOW * (len(blows) + 1)
        folder = material.root / name.replace(" ", "-")
        self.run, self.peaceful = folder / "struck", folder / "peaceful"
        folder.mkdir()
        self.command = material.command(self.run, steps, flags)
        self.peaceful_command = material.command(self.peaceful, steps, flags)
        self.tally = Tally()

    def strike(self, blow: Blow) -> str:
        """Start or go on, strike, and return what came of it, in words."""
        steps = self._steps()
        damage, extra, limit = "", [], None
        if blow.what == "full":
            if not steps:
                return "no checkpoint to keep yet"
            limit = room_to_fail(self.run)
        if blow.what == "time":
            extra = ["--max-time", f"0-00:00:{self.draw.randint(6, 12):02}"]
        if blow.what == "damage":
            if len(steps) < 2:
                return "only one checkpoint yet"
            damage = damage_newest(self.run, self.draw) + "; "
            steps.pop()
            blow = Blow("kill", blow.who, blow.when)
        watched = Watched(self.run, [*self.command, *extra], file_bytes=limit)
        try:
            words = strike(blow, watched, self.draw, self.tally)
            self._check_start(watched, steps, bool(damage))
            after = self._steps()
            assert after[-1:] >= steps[-1:], f"lost a checkpoint: {steps} before, {after} after"
        finally:
            watched.end()
        return f"{damage}{words}, newest is step {(after or [0])[-1]}"

    def finish(self) -> str:
        """Go on to the end and compare with the run that was left in peace."""
        steps = self._steps()
        watched = Watched(self.run, self.command)
        try:
            code = watched.wait()
            assert code == 0, watched.said()[-1500:]
            watched.seconds_until_gone()
            self._check_start(watched, steps, False)
        finally:
            watched.end()
        left = [path.name for path in (self.run / "checkpoints").glob(".*.tmp")]
        assert not left, f"left behind: {left}"
        one_rank = tiny.ranks_of(self.peaceful_command) == 1
        (tiny.quickly if one_rank else tiny.ok)(*self.peaceful_command)
        self._compare()
        return "metrics and weights are those of the run in peace, bit for bit"

    def _steps(self) -> list[int]:
        return complete_steps(self.run)

    def _check_start(self, watched: Watched, steps: list[int], damaged: bool) -> None:
        """The start went on from the newest checkpoint that was whole, and named the one that was not."""
        said = re.search(r"continuing .* after step (\d+)", watched.said())
        if said is not None:
            assert int(said[1]) == (steps or [0])[-1], f"went on after {said[1]}, had {steps}"
        if damaged:
            assert said is not None, watched.said()
            assert "is damaged" in watched.said(), watched.said()
        else:
            assert "is damaged" not in watched.said(), watched.said()

    def _compare(self) -> None:
        struck, peaceful = _curve(self.run), _curve(self.peaceful)
        assert struck.keys() == peaceful.keys(), struck.keys() ^ peaceful.keys()
        differing = {
            key: (struck[key], peaceful[key]) for key in struck if struck[key] != peaceful[key]
        }
        assert not differing, differing
        ours, theirs = _weights(self.run), _weights(self.peaceful)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if ours[name] != theirs[name]] == []


def _curve(run: Path) -> dict[tuple[str, int], dict]:
    """Return what each step came to; where it occurs twice the last line counts."""
    return {
        (line["split"], line["step"]): {key: line[key] for key in COMPARED if key in line}
        for line in read_lines(run)
    }


def _weights(run: Path) -> dict[str, bytes]:
    with tarfile.open(run / "megatron_gpt_sft.nemo") as archive:
        members = [member for member in archive.getmembers() if "model_weights" in member.name]
        found = {m.name: archive.extractfile(m).read() for m in members if m.isfile()}
    assert found, "an archive has weights"
    return found
