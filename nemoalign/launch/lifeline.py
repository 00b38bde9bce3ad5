"""A rank does not outlive the process that started it, however that ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping

PARENT = "NEMOALIGN_PARENT"
TORCHRUN = "TORCHELASTIC_RUN_ID"

_PR_SET_PDEATHSIG = 1


def follow_parent(environ: Mapping[str, str]) -> None:
    """In a rank that we or torchrun started: die with the process that started it.

    Ranks of srun are ended by SLURM. Anybody else who sets RANK may leave the ranks running on purpose.
    """
    if PARENT in environ:
        parent = int(environ[PARENT])
    elif TORCHRUN in environ:
        parent = os.getppid()
    else:
        return
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
