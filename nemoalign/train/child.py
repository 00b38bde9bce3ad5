"""Work beside training: a forked process that works on the memory of this instant and answers once.

megatron-core's own saving forks as well. What a child must not do is talk to a GPU or to other ranks.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from nemoalign.errors import ResourceError
from nemoalign.train.agreement import tellable

_PR_SET_PDEATHSIG = 1
_NOT_FOR_CHILDREN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Whoever stops a run may tell all its processes; the one that trains decides, and waits for us."""


class Child:
    """One piece of work in a process of its own, which ends with the process that started it."""

    def __init__(
        self, work: Callable[[], Any], remedy: str = "Try again with more memory."
    ) -> None:
        """Start ``work``; what it returns must be fit for pickling.

        ``remedy`` is what to type when somebody kills the process.

        Raises:
            OSError: when the system has no room for another process.
        """
        self._remedy = remedy
        context = multiprocessing.get_context("fork")
        self._answers, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_carry_out, args=(work, sender, os.getpid()))
        # A collection in the child would free the parent's GPU tensors.
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            self._process.start()
        finally:
            if was_collecting:
                gc.enable()
            sender.close()

    def is_working(self) -> bool:
        """False once the answer is there, or will never be."""
        return not self._answers.poll()

    def answer(self) -> Any:
        """Wait for the end and return what the work returned, or raise what it raised.

        Raises:
            ResourceError: when somebody killed the process.
        """
        try:
            done, value = self._answers.recv()
        except EOFError:
            self._process.join()
            raise ResourceError(
                f"the process that writes beside training ended with {self._process.exitcode} and "
                f"without a word; most likely the machine ran out of memory. {self._remedy}"
            ) from None
        self._process.join()
        if done:
            return value
        raise value

    def kill(self) -> None:
        """End the work, wherever it stands."""
        self._process.kill()
        self._process.join()


def _carry_out(work: Callable[[], Any], sender: Any, parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in _NOT_FOR_CHILDREN:
        signal.signal(number, signal.SIG_IGN)
    try:
        answer = True, work()
    except Exception as error:  # noqa: BLE001 - it is raised again, where somebody waits for it
        answer = False, tellable(error)
    with contextlib.suppress(BrokenPipeError):
        sender.send(answer)
