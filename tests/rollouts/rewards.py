"""Functions of a person who tests what may go wrong: as ``rewards.py`` beside whoever starts them."""

import ctypes
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

print("noise of an import")


def length(prompt, response):
    return len(response)


def slowly(prompt, response, *, seconds):
    time.sleep(seconds)
    return len(response)


def echo(prompt, response, **fields):
    return float(fields["number"] == 3 and fields["text"] == prompt == response)


def crash_how(prompt, response):
    if response == "exit":
        os._exit(3)
    if response == "segfault":
        ctypes.string_at(0)
    if response == "sleep":
        time.sleep(60)
    if response == "regex":  # never gives the interpreter back
        re.match(r"(a+)+$", "a" * 40 + "b")
    if response == "kill":
        os.kill(os.getpid(), 9)
    if response == "close":
        os.closerange(3, 100)
    return 1


def noisy(prompt, response):
    print('{"problem": "no"}', flush=True)
    print(response, file=sys.stderr, flush=True)
    return 1


def tell(prompt, response, file):
    """Write what this process is to ``file``, and leave a child that sleeps."""
    child = subprocess.Popen(["sleep", "60"])
    about = {
        "pid": os.getpid(),
        "child": child.pid,
        "torch": "torch" in sys.modules,
        "path": sys.path[0],
        "rank": os.environ.get("RANK"),
        "stdin": sys.stdin.read(),
    }
    Path(file).with_suffix(".part").write_text(json.dumps(about))
    Path(file).with_suffix(".part").rename(file)
    time.sleep(float(response))
    return 1


def rank_them(prompts, responses, rows):
    if "raise" in responses:
        raise LookupError("two\nlines")
    if "short" in responses:
        return [1.0]
    if "none" in responses:
        return None
    order = sorted(range(len(responses)), key=lambda i: rows[i]["quality"])
    return [order.index(i) for i in range(len(responses))]


rank_them.batched = True
