"""How long training stands still for a checkpoint: written beside it, written at once, and never.

Full weights of SmolLM2-135M with Adam in fp32, real rows, the real command in turn with
exp_manager.checkpoint_callback_params.async_save on and off. Memory is the largest sum of the proportional set
sizes of the process and what it forked, so pages that both hold count once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from side_by_side import CACHE, PROJECT, WORK, in_turn, median, publish, table

SIDES = {"no checkpoint": None, "written beside": "true", "written at once": "false"}
EVERY = 4
FOLDER = WORK / "save-stall"


def measure(model: Path, saves: int, in_background: str | None) -> dict[str, Any]:
    """Run the real command once; return seconds of every step with what followed it, and memory."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    times = FOLDER / "times.json"
    settings = [f"exp_manager.checkpoint_callback_params.async_save={in_background or 'false'}"]
    typed = [
        sys.executable, __file__, "--times", times,
        "sft", "--ckpt", model, "--data", CACHE / "train.jsonl", "-o", FOLDER / "run",
        "--precision", "fp32", "--devices", 1, "--gbs", 1, "--mbs", 1, "--seq-len", 256,
        "--max-steps", EVERY * (saves + 1) - 1, "--keep-top", 0,
        "--save-every", EVERY if in_background else 0, *settings,
    ]  # fmt: skip
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    with (FOLDER / "talk").open("w") as talk:
        process = subprocess.Popen(
            list(map(str, typed)), stdout=talk, stderr=talk, env=os.environ | {"PYTHONPATH": path}
        )
        peak = [0]
        threading.Thread(target=_sample, args=(process.pid, peak), daemon=True).start()
        if process.wait():
            sys.exit((FOLDER / "talk").read_text()[-4000:])
    steps = json.loads(times.read_text())
    shutil.rmtree(FOLDER)
    return {"steps": steps, "peak_bytes": peak[0]}


def stalls(steps: list[float], plain: float) -> dict[str, float]:
    """Return what one checkpoint costs: the step that begins it, and all steps until the next.

    The last step, whose checkpoint is always waited for, is left out.
    """
    begun = range(EVERY - 1, len(steps) - EVERY + 1, EVERY)
    return {
        "stall": statistics.median(steps[i] - plain for i in begun),
        "in_all": statistics.median(
            sum(steps[i : i + EVERY - 1]) - (EVERY - 1) * plain for i in begun
        ),
    }


def _sample(pid: int, peak: list[int]) -> None:
    """Keep the largest sum of proportional set sizes of a process and those it started."""
    import psutil

    while True:
        try:
            parent = psutil.Process(pid)
            family = [parent, *parent.children(recursive=True)]
            peak[0] = max(peak[0], sum(one.memory_full_info().pss for one in family))
        except psutil.Error:
            if not psutil.pid_exists(pid):
                return
        time.sleep(0.2)


def timed(times: str, arguments: list[str]) -> int:
    """Run the command in this process, noting how long each turn of the loop takes."""
    from nemoalign.cli.app import run
    from nemoalign.parallel.device import select_backend

    select_backend()
    from nemoalign.train.loop import Trainer

    seconds: list[float] = []
    real = Trainer._one_step

    def one_step(self: Trainer, bar: Any) -> None:
        started = time.perf_counter()
        real(self, bar)
        seconds.append(time.perf_counter() - started)

    Trainer._one_step = one_step
    code = run(arguments)
    Path(times).write_text(json.dumps(seconds))
    return code


def main() -> None:
    """Measure every side in turn and print what a checkpoint costs."""
    known = argparse.ArgumentParser(description=__doc__)
    known.add_argument("--model", type=Path, default=CACHE / "SmolLM2-135M-Instruct")
    known.add_argument("--saves", type=int, default=3, help="checkpoints in a run")
    known.add_argument("--rounds", type=int, default=2)
    asked = known.parse_args()
    sides = {
        name: lambda how=how: measure(asked.model, asked.saves, how) for name, how in SIDES.items()
    }
    results = in_turn(sides, asked.rounds)
    plain = statistics.median(
        second for one in results["no checkpoint"] for second in one["steps"][1:-1]
    )
    rows: list[list[str]] = []
    for name, rounds in results.items():
        costs = [stalls(one["steps"], plain) for one in rounds]
        stall, in_all = median(costs, "stall"), median(costs, "in_all")
        cells = ["", ""] if name == "no checkpoint" else [f"{stall:.2f} s", f"{in_all:.2f} s"]
        rows.append([name, *cells, f"{median(rounds, 'peak_bytes') / 2**30:.2f} GiB"])
    head = [
        f"a step takes {plain:.2f} s",
        "step of the save: + ",
        "until the next save: +",
        "peak memory",
    ]
    publish("save_stall", {"plain": plain, "results": results}, table(head, rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--times"]:
        sys.exit(timed(sys.argv[2], sys.argv[3:]))
    main()
