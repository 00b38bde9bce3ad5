"""A checkpoint on a server is inspected through its headers alone."""

from __future__ import annotations

import gzip
import json

import pytest

from nemoalign.checkpoint.inspect import inspect, inspect_source, list_tensors
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.remote import open_remote
from nemoalign.errors import SourceError
from tests.archive.serving import serving
from tests.checkpoint.models import FIXTURES
from tests.cli.running import run

ARCHIVES = ["llama.nemo", "llama_tp2_ranks.nemo", "gpt_tp1_dist.nemo", "chatsft_tp1_file.nemo"]


@pytest.fixture(scope="module")
def served():
    with serving({name: (FIXTURES / name).read_bytes() for name in ARCHIVES}) as served:
        yield served


@pytest.mark.parametrize("name", ARCHIVES)
def test_what_is_told_is_what_the_file_tells(name, served):
    remote = open_remote(f"{served.url}/{name}")
    local = inspect(FIXTURES / name)
    found = inspect_source(remote.source)
    for key in local.keys() - {"path", "what", "size_bytes", "warnings"}:
        assert found[key] == local[key], key
    assert found["path"] == f"{served.url}/{name}"
    assert list_tensors(remote.source) == list_tensors(open_source(FIXTURES / name))
    assert remote.file.fetched < 0.5 * remote.file.size
    assert remote.file.requests <= 25


def test_the_command_says_how_much_it_read(served):
    before = served.sent
    ended = run("inspect", f"{served.url}/llama.nemo", "--json")
    read = (served.sent - before) / 1e6
    assert ended.code == 0
    assert json.loads(ended.out)["size_bytes"] == len(served.files["llama.nemo"])
    assert ended.err.startswith(f"read {read:.2f} MB of 1.00 MB, in ")


def test_other_commands_ask_for_a_download(served, tmp_path):
    url = f"{served.url}/llama.nemo"
    for words in (("convert", url, "-o", tmp_path / "x.nemo"), ("inspect", url, "--check")):
        ended = run(*words)
        assert ended.code == 3
        assert f"{url} is an address" in ended.err
        assert "Download it first" in ended.err


def test_a_compressed_archive_is_not_fetched_whole():
    content = gzip.compress((FIXTURES / "llama.nemo").read_bytes())
    with serving({"old.nemo": content}) as served:
        with pytest.raises(SourceError, match="is compressed"):
            open_remote(f"{served.url}/old.nemo")
        assert served.sent < 20_000
