"""Ranks that somebody else started: when one is killed, the other says so and the run goes on later."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from nemoalign.errors import LostRankError
from nemoalign.parallel.lost import lost_rank, naming_lost_ranks
from tests.commands import tiny

STEPS = 400


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lost")
    tiny.make_llama(folder / "hf")
    tiny.write_rows(folder / "rows.jsonl", tiny.rows(32, seed=1))
    return folder


def start_pair(material: Path, run: Path, *flags: object) -> list[subprocess.Popen]:
    """Start two ranks as torchrun and srun do: by their environment, with no parent of ours."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "nemoalign", "sft", "--ckpt", material / "hf", "-o", run]
    command += ["--data", material / "rows.jsonl", "--precision", "fp32", "--gbs", "4"]
    command += ["--seq-len", "64", "--save-every", "2", "--epochs", "1000", *flags]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    own = {**os.environ, **world, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    pair = []
    for rank in ("0", "1"):
        with (run.parent / f"stderr{rank}").open("wb") as stderr:
            environ = {**own, "RANK": rank, "LOCAL_RANK": rank}
            words = [str(word) for word in command]
            pair.append(subprocess.Popen(words, stderr=stderr, env=environ))
    return pair


def test_a_rank_whose_partner_is_killed_says_so_and_the_run_can_go_on(material, tmp_path):
    run = tmp_path / "run"
    pair = start_pair(material, run, "--tp", 2, "--max-steps", STEPS)
    try:
        limit = time.monotonic() + 120
        while not list((run / "checkpoints").glob("*step=2*")) and time.monotonic() < limit:
            assert all(rank.poll() is None for rank in pair)
            time.sleep(0.05)
        pair[1].send_signal(signal.SIGKILL)
        assert pair[0].wait(60) == LostRankError.exit_code == 7
    finally:
        for rank in pair:
            rank.kill()
            rank.wait()
    said = (tmp_path / "stderr0").read_text()
    assert "Rank 1 went away while this one waited for it" in said
    assert "goes on from the run's last checkpoint" in said
    assert "bug" not in said
    summary = json.loads((run / "summary.json").read_text())
    assert summary["state"] == "failed"
    assert summary["reason"].startswith("Rank 1 went away")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.7]:5513"), "A rank on 10.0.0.7"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [::1]:3: Connection reset by peer"), "Another rank"),
        (torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error\nncclRemoteError: x"), "Another rank"),
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes. Connection was likely closed."), "Another rank"),
    ],
)  # fmt: skip
def test_what_the_backends_say_of_a_rank_that_is_gone(error, says, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert str(lost_rank(error)).startswith(f"{says} went away")
    with pytest.raises(LostRankError, match="last checkpoint") as raised, naming_lost_ranks():
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"),
        torch.distributed.DistBackendError("NCCL error: ncclInvalidUsage: mismatched shapes"),
        torch.distributed.DistNetworkError("The server socket has failed to listen on any address"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ConnectionResetError("Connection reset by peer"),
    ],
)  # fmt: skip
def test_other_errors_stay_what_they_are(error):
    assert lost_rank(error) is None
    with pytest.raises(type(error)) as raised, naming_lost_ranks():
        raise error
    assert raised.value is error
