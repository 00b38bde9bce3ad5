"""What can befall a run, and what must hold after it: one function a kind, each with its own exit code."""

import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from nemoalign.train.stopping import SAME_SECONDS
from tests.soak.watched import Watched, complete_steps, step_of

START_SECONDS = (0.3, 6.0)
"""Between these, kills without a step to wait for land: from Python's start to restoring."""
SAVE_SECONDS = 0.12
"""About what a save of the tiny model takes."""
STOPPED, INTERRUPTED, NO_DISK, CRASHED = 75, 130, 7, 1


@dataclass(frozen=True)
class Blow:
    """One thing done to a run: what, to whom, and when."""

    what: str
    who: str = "all"
    when: str = "step"

    def __str__(self) -> str:
        return f"{self.what} {self.who} in {self.when}"


@dataclass
class Tally:
    """What the summary counts."""

    kills: int = 0
    inside_saves: int = 0
    inside_validations: int = 0
    seconds_to_die: list[float] = field(default_factory=list)


def strike(blow: Blow, watched: Watched, draw: random.Random, tally: Tally) -> str:
    """Do ``blow`` to a run that goes on; return what happened, in words.

    Raises:
        AssertionError: when something survives, is lost, or says or returns something else.
    """
    if not _wait_for_moment(blow.when, watched, draw):
        code = watched.wait()
        raise AssertionError(f"ended with {code} before the blow: {watched.said()[-1500:]}")
    words = KINDS[blow.what](blow, watched, draw, tally)
    seconds = watched.seconds_until_gone()
    tally.seconds_to_die.append(seconds)
    return f"{words}, gone after {seconds:.1f} s"


def _wait_for_moment(when: str, watched: Watched, draw: random.Random) -> bool:
    """Wait for a random moment of the wanted kind; False when the run ended before."""
    if when == "start":
        until = watched.began + draw.uniform(*START_SECONDS)
        return watched.has(lambda: time.monotonic() > until)
    if when == "validation":
        return watched.has(lambda: _is_validation_due(watched))
    wanted = draw.randint(1, 3)
    if not watched.has(lambda: watched.steps() >= wanted):
        return False
    if when == "step":
        time.sleep(draw.uniform(0, 0.3))
        return True
    longest = SAVE_SECONDS
    while watched.has(watched.is_saving):
        time.sleep(draw.uniform(0, longest))
        if watched.is_saving():
            return True
        longest /= 2
    return False


def _is_validation_due(watched: Watched) -> bool:
    lines = watched.new_lines()
    return bool(lines) and lines[-1]["split"] == "train" and lines[-1]["step"] % 4 == 0


def _kill(blow: Blow, watched: Watched, draw: random.Random, tally: Tally) -> str:
    ranks = watched.ranks()
    alone = ranks == {0: watched.process.pid}
    victim = draw.choice(sorted(ranks))
    if blow.who == "all":
        watched.kill(*watched.living())
    elif blow.who == "parent":
        watched.kill(watched.process.pid)
    else:
        watched.kill(ranks[victim])
    code = watched.wait()
    tally.kills += 1
    inside = watched.is_saving()
    tally.inside_saves += inside
    if blow.who == "rank" and not alone:
        _insist(watched, code == NO_DISK, f"exit code {code}")
        _insist(watched, f"rank {victim} was killed (SIGKILL)" in watched.said(), "no such words")
    else:
        _insist(watched, code == -signal.SIGKILL, f"exit code {code}")
    return "inside a save" if inside else "outside saves"


def _crash(blow: Blow, watched: Watched, draw: random.Random, tally: Tally) -> str:
    del blow, tally
    ranks = watched.ranks()
    victim = draw.choice(sorted(ranks))
    began = time.monotonic()
    watched.kill(ranks[victim], number=signal.SIGSEGV)
    code = watched.wait()
    _insist(watched, time.monotonic() - began < 10, "took more than 10 seconds to end")
    if ranks == {0: watched.process.pid}:
        _insist(watched, code == -signal.SIGSEGV, f"exit code {code}")
    else:
        _insist(watched, code == CRASHED, f"exit code {code}")
        _insist(watched, f"rank {victim} crashed (SIGSEGV)" in watched.said(), "no such words")
    return f"rank {victim} crashed"


def _stop(blow: Blow, watched: Watched, draw: random.Random, tally: Tally) -> str:
    """One signal, to the parent or to one rank alone: a clean save, and 75 or 130."""
    number = draw.choice((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
    if blow.who == "rank":  # as `scancel --signal=USR1` to one task
        number = signal.SIGUSR1
        watched.kill(draw.choice(list(watched.ranks().values())), number=number)
    else:
        watched.kill(watched.process.pid, number=number)
    _insist_on_clean_end(watched, INTERRUPTED if number == signal.SIGINT else STOPPED)
    if blow.when == "validation":
        measured = any(line["split"] == "val" for line in watched.new_lines()[-1:])
        tally.inside_validations += not measured
    return f"{number.name}, saved"


def _time(blow: Blow, watched: Watched, draw: random.Random, tally: Tally) -> str:
    """``--max-time`` was in the command; it comes by itself."""
    del blow, draw, tally
    _insist_on_clean_end(watched, STOPPED)
    return "time limit, saved"


def _twice(blow: Blow, watched: Watched, draw: random.Random, tally: Tally) -> str:
    """A second signal ends the run at once, whatever it does."""
    del blow, tally
    numbers = [draw.choice((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)) for _ in range(2)]
    watched.kill(watched.process.pid, number=numbers[0])
    time.sleep(draw.uniform(SAME_SECONDS + 0.1, SAME_SECONDS + 0.3))
    if watched.process.poll() is None:
        watched.kill(watched.process.pid, number=numbers[1])
    began = time.monotonic()
    code = watched.wait()
    _insist(watched, time.monotonic() - began < 3, "took more than 3 seconds to end")
    at_once = 128 + numbers[1]
    allowed = (at_once, -numbers[1], STOPPED, INTERRUPTED)
    _insist(watched, code in allowed, f"exit code {code}")
    return f"{numbers[0].name} and {numbers[1].name}, exit code {code}"


def _full(blow: Blow, watched: Watched, draw: random.Random, tally: Tally) -> str:
    """No file may grow as large as the largest of a checkpoint: the run cannot save, says so, and loses nothing."""
    del blow, draw, tally
    code = watched.wait()
    _insist(watched, code == NO_DISK, f"exit code {code}")
    return "no space to save"


KINDS = {
    "kill": _kill,
    "crash": _crash,
    "stop": _stop,
    "time": _time,
    "twice": _twice,
    "full": _full,
}


def damage_newest(run: Path, draw: random.Random) -> str:
    """Damage a random file of the newest checkpoint at a random place; return what was done."""
    newest = max((run / "checkpoints").glob("megatron_gpt--*.ckpt"), key=step_of)
    files = [path for path in sorted(newest.rglob("*")) if path.is_file() and path.stat().st_size]
    file = draw.choice([path for path in files if path.name != "checksums.json"])
    data = bytearray(file.read_bytes())
    place = draw.randrange(len(data))
    how = draw.choice(("flipped", "zeroed", "truncated", "removed"))
    if how == "flipped":
        data[place] ^= 1 << draw.randrange(8)
    elif how == "zeroed":
        data[place : place + 512] = bytes(len(data[place : place + 512]))
        data[place] = 1  # where zeros were before
    else:
        del data[place:]
    file.unlink() if how == "removed" else file.write_bytes(data)
    return f"step {step_of(newest)}: {file.relative_to(newest)} {how}"


def room_to_fail(run: Path) -> int:
    """Return a size limit under which the newest checkpoint could not have been written."""
    newest = max((run / "checkpoints").glob("megatron_gpt--*.ckpt"), key=step_of)
    return max(path.stat().st_size for path in newest.rglob("*") if path.is_file()) * 3 // 4


def _insist_on_clean_end(watched: Watched, code: int) -> None:
    ended = watched.wait()
    _insist(watched, ended == code, f"exit code {ended}, not {code}")
    _insist(watched, not watched.is_saving(), "a save was left unfinished")
    trained = [line["step"] for line in watched.new_lines() if line["split"] == "train"]
    if trained:
        newest = complete_steps(watched.run)[-1]
        _insist(watched, newest == trained[-1], f"saved {newest}, trained {trained[-1]}")


def _insist(watched: Watched, holds: bool, otherwise: str) -> None:
    assert holds, f"{otherwise}: {watched.said()[-1500:]}"
