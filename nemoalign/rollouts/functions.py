"""Python functions of a person's own as rewards, called in processes of their own.

Whatever such a function does (raise, hang, crash, print), its answer goes without a reward and the run
goes on. One rank calls functions and tells the others: nothing here is collective.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

from nemoalign.config.values import RewardSource
from nemoalign.errors import ConfigError, ResourceError
from nemoalign.rollouts.function_process import FunctionProcess, listen


class Answer(NamedTuple):
    """What a function is asked to reward."""

    prompt: str
    response: str
    fields: Mapping[str, Any] = {}
    """The other fields of the prompt's row; the function gets them as JSON would hold them."""
    place: str = ""
    """Where the row stands, for messages: ``rows.jsonl:12``."""


@dataclass
class Failure:
    """One kind of failure, with its first instance."""

    source: str
    """``my_module:score``."""
    kind: str
    """What the function did, the same words every time: ``raised KeyError``."""
    message: str
    where: str
    """File and line, "" when unknown."""
    place: str
    answers: int
    """How many answers were to be rewarded together with these."""
    count: int = 0

    def __str__(self) -> str:
        """Return what happened, how often, and where first."""
        message = f": {self.message}" if self.message else ""
        where = f" ({self.where})" if self.where else ""
        return (
            f"{self.source} {self.kind}{message}{where} for {self.count} of {self.answers} answers; "
            f"the first: {self.place}"
        )


class RewardFunction:
    """A function that rewards answers, in ``workers`` processes that stay until ``close``."""

    def __init__(self, source: RewardSource, *, workers: int, seconds: float) -> None:
        """Start the processes and wait until the first has imported the function.

        ``seconds`` is how long one answer may take; a call for n answers may take n times as long.

        Raises:
            ConfigError: when there is no such function, or it is none that rewards answers.
            ResourceError: when the system has no room for another process.
        """
        self.source = source
        self.failures: tuple[Failure, ...] = ()
        """What went wrong in the last ``score``, one for each kind, in the order of the rows."""
        self._workers, self._seconds = workers, seconds
        self._told: set[str] = set()
        self._broken = ""
        self._processes = [FunctionProcess(source, seconds)]
        try:
            self._batched = bool(self._first_words()["batched"])
            # The others import while the run does something else.
            while len(self._processes) < workers:
                self._processes.append(FunctionProcess(source, seconds))
        except BaseException:
            self.close()
            raise

    def score(self, rows: Iterable[tuple[Any, ...]]) -> list[float]:
        """Return the function's reward of each row, in order; NaN where it gave none.

        A row is an ``Answer``, or the first parts of one: prompt, response and fields. None from the function is no reward and no failure; all else that is no finite number is one
        of ``failures``.
        """
        answers = [Answer(*row) for row in rows]
        results: list[Any] = [None] * len(answers)
        waiting = deque(self._tasks(len(answers)))
        try:
            self._revive()
            while waiting or any(process.task is not None for process in self._processes):
                for process in self._processes:
                    if waiting and process.is_free:
                        task = waiting.popleft()
                        process.ask(task, [answers[i][:3] for i in task])
                if not self._processes:
                    kind = "could not be started again"
                    failure = {"kind": kind, "message": self._broken, "where": ""}
                    _fill(results, [i for task in waiting for i in task], failure)
                    break
                for process, said in listen(self._processes):
                    self._hear(process, said, results)
        except BaseException:
            self._drop([process for process in self._processes if process.task is not None])
            raise
        self.failures = self._failures(answers, results)
        return [result if isinstance(result, float) else math.nan for result in results]

    def news(self) -> list[str]:
        """Return a sentence for each of ``failures`` of a kind that no earlier call returned."""
        new = [failure for failure in self.failures if failure.kind not in self._told]
        self._told |= {failure.kind for failure in new}
        return [str(failure) for failure in new]

    def close(self) -> None:
        """End all processes, and what the function started in them."""
        self._drop(list(self._processes))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first_words(self) -> Mapping[str, Any]:
        """Wait until the first process has the function; return what it says of it."""
        (process,) = self._processes
        while process.about is None:
            for _, said in listen([process]):
                self._hear(process, said, [])
            if not self._processes:
                raise ConfigError(f"--reward {self.source.name} does not work: {self._broken}.")
        return process.about

    def _tasks(self, count: int) -> list[range]:
        """Return which rows go into which call: one each, or a share for each process."""
        calls = self._workers if self._batched else count
        bounds = [count * i // max(calls, 1) for i in range(calls + 1)]
        return [range(a, b) for a, b in pairwise(bounds) if a < b]

    def _revive(self) -> None:
        """Have all processes again, as far as the system lets us: they may have died between calls."""
        self._drop([p for p in self._processes if p.is_free and not p.is_alive])
        try:
            while len(self._processes) < self._workers:
                self._processes.append(FunctionProcess(self.source, self._seconds))
        except ResourceError as error:
            self._broken = str(error)

    def _hear(self, process: FunctionProcess, said: Any, results: list[Any]) -> None:
        """Take what a process said, or that it ended (None)."""
        if process.about is None:
            if said is None:
                end = process.post_mortem()
                where = f" ({end['where']})" if end["where"] else ""
                said = {"problem": f"importing it {end['kind'].rstrip(',')}{where}"}
            if "problem" not in said:
                process.about = said
                return
            self._broken = said["problem"]
            self._drop([process])
        elif process.task and isinstance(said, list) and len(said) == len(process.task):
            results[process.task.start : process.task.stop] = said
            process.task = None
        else:
            if process.task is not None:
                _fill(results, process.task, process.post_mortem())
            self._drop([process])
            self._revive()

    def _drop(self, processes: Sequence[FunctionProcess]) -> None:
        for process in processes:
            process.end()
            self._processes.remove(process)

    def _failures(self, answers: Sequence[Answer], results: Sequence[Any]) -> tuple[Failure, ...]:
        found: dict[str, Failure] = {}
        for i, result in enumerate(results):
            if isinstance(result, dict):
                place = answers[i].place or f"answer {i + 1}"
                new = Failure(self.source.name, **result, place=place, answers=len(answers))
                found.setdefault(new.kind, new).count += 1
        return tuple(found.values())


def _fill(results: list[Any], places: Iterable[int], value: Any) -> None:
    for place in places:
        results[place] = value
