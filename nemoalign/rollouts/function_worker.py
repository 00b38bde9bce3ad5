"""A process that calls one function of a person's own, over and over.

It imports no torch, and the directory where the run was started is on its path. It speaks lines of JSON
through a socket: first what the function is, or why there is none, then for each list of answers a list
of rewards.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemoalign.rollouts.function_call import FunctionCall, Unusable

DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Whoever stops a run may tell all its processes; the one that trains decides."""


def main(arguments: Sequence[str]) -> None:
    """Answer what comes through the channel until it closes; the process dies with it.

    ``arguments`` are two open files by number, the channel and ``faults``, then the module, the
    function and ``seconds``. A call that takes longer than ``seconds`` an answer ends the process;
    where it stood, or where it crashed, is written to ``faults``. That needs no help of the
    interpreter, so it also ends code that never gives the interpreter back.
    """
    channel, faults = socket.socket(fileno=int(arguments[0])), int(arguments[1])
    module, function, seconds = arguments[2], arguments[3], float(arguments[4])
    _become_a_worker(channel, faults)
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, asked), daemon=True).start()
    try:
        call = FunctionCall.load(module, function)
    except Unusable as problem:
        _tell(channel, {"problem": str(problem)})
        return
    _tell(channel, {"file": call.file, "batched": call.batched})
    while True:
        rows = json.loads(asked.get())
        faulthandler.dump_traceback_later(seconds * len(rows), exit=True, file=faults)
        results = call.results(rows)
        faulthandler.cancel_dump_traceback_later()
        _tell(channel, results)


def _become_a_worker(channel: socket.socket, faults: int) -> None:
    sys.path.insert(0, str(Path.cwd()))
    for fd in (channel.fileno(), faults):
        os.set_inheritable(fd, False)
    faulthandler.enable(file=faults)
    for (
        number
    ) in DEAF_TO:  # a handler, unlike SIG_IGN, is not inherited by commands a function runs
        signal.signal(number, lambda *_: None)
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, DEAF_TO),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, DEAF_TO),
        after_in_child=lambda: _become_a_bystander(channel),
    )


def _become_a_bystander(channel: socket.socket) -> None:
    """In what a function forks: be stopped as others are, and do not hold the line when it is dead."""
    channel.close()
    for number in DEAF_TO:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DEAF_TO)


def _listen(channel: socket.socket, asked: queue.SimpleQueue[bytes]) -> None:
    """Queue what is asked; die, with all that the function started, when nobody asks any more."""
    # Who asks may be gone before it has read our last words, and the system calls that an error.
    with contextlib.suppress(OSError), channel.makefile("rb") as lines:
        for line in lines:
            asked.put(line)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _tell(channel: socket.socket, value: Any) -> None:
    channel.sendall(json.dumps(value).encode() + b"\n")
