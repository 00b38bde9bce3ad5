"""Archives made to do harm: each is refused in a sentence, or read with the harm ignored; nothing is run.

What single readers refuse is tested beside them; here whole archives go through the whole of convert.
"""

import io
import os
import pickle
import re
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from nemoalign.checkpoint.convert import convert
from nemoalign.errors import NemoAlignError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
DIST, RANKS = FIXTURES / "llama.nemo", FIXTURES / "llama_tp2_ranks.nemo"
CONFIG = "./model_config.yaml"
RANK = "./mp_rank_01/model_weights.ckpt"
SECONDS = 5


class Evil:
    """Unpickled by pickle, it leaves a file behind."""

    def __reduce__(self):
        return os.system, ("touch evil",)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}


def archive(path: Path, content: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for info in more:
            tar.addfile(info)
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def changed(source: Path, folder: Path, **changes) -> Path:
    """Repack ``source`` with members changed: name (``_`` for what no keyword may hold) -> function."""
    content = members(source)
    names = {"config": CONFIG, "rank": RANK, "index": "./model_weights/.metadata"}
    names["common"] = "./model_weights/common.pt"
    for name, change in changes.items():
        content[names[name]] = change(content[names[name]])
    return archive(folder / "evil.nemo", content)


def with_config(text: str):
    return lambda folder: changed(DIST, folder, config=lambda old: old + text.encode())


def setting(key: str, value: str):
    """Give a top-level key of the configuration another value."""

    def change(old: bytes) -> bytes:
        lines = old.decode().splitlines()
        kept = [line for line in lines if not line.startswith(f"{key}:")]
        return "\n".join([*kept, f"{key}: {value}", ""]).encode()

    return lambda folder: changed(DIST, folder, config=change)


def tokenizer(model: str):
    """Name another tokenizer file."""

    def change(old: bytes) -> bytes:
        (found,) = re.findall(rb"model: nemo:\S+", old)
        return old.replace(found, f"model: {model}".encode())

    return lambda folder: changed(DIST, folder, config=change)


def repickled(data: bytes, change) -> bytes:
    """Change the pickle inside a torch file."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as new:
        for name, content in entries.items():
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return made.getvalue()


def deflated(data: bytes) -> bytes:
    """Replace the largest entry of a torch file by ten million compressed zeros."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        entries = {info.filename: old.read(info) for info in old.infolist()}
    largest = max(entries, key=lambda name: len(entries[name]))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as new:
        for name, content in entries.items():
            bomb = name == largest
            kind = zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED
            new.writestr(name, bytes(10_000_000) if bomb else content, kind)
    return made.getvalue()


def larger(pickled: bytes) -> bytes:
    """Make every dimension of 128 of a pickle one of 2 ** 31 - 1."""
    return pickled.replace(b"K\x80", b"J\xff\xff\xff\x7f")


def special(kind: bytes, target: str = ""):
    def make(folder: Path) -> Path:
        info = tarfile.TarInfo("./more")
        info.type, info.linkname = kind, target
        return archive(folder / "evil.nemo", members(DIST), info)

    return make


def named(name: str):
    return lambda folder: archive(folder / "evil.nemo", members(DIST) | {name: b"x"})


def claimed(folder: Path) -> Path:
    """A header that claims more bytes than there are."""
    path = archive(folder / "evil.nemo", members(DIST))
    data = bytearray(path.read_bytes())
    info = tarfile.TarInfo(CONFIG)
    info.size = 1 << 40
    data[:512] = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(data)
    return path


def twice(folder: Path) -> Path:
    path = archive(folder / "evil.nemo", members(DIST))
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("model_config.yaml"))
    return path


EVIL = pickle.dumps(Evil())
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)

REFUSED = {
    "a name above the archive": named("../evil"),
    "an absolute name": named("/tmp/evil"),
    "a backslash": named("..\\evil"),
    "a symbolic link": special(tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link": special(tarfile.LNKTYPE, "/etc/passwd"),
    "a device": special(tarfile.CHRTYPE),
    "a pipe": special(tarfile.FIFOTYPE),
    "a sparse file": special(tarfile.GNUTYPE_SPARSE),
    "two configurations": twice,
    "a size beyond the end": claimed,
    "YAML that makes objects": with_config("x: !!python/object/apply:os.system ['touch evil']\n"),
    "YAML that multiplies": with_config(BOMB),
    "YAML that nests": with_config("x: " + "[" * 50_000 + "]" * 50_000),
    "YAML that names itself": with_config("x: &x {y: *x}\n"),
    "an interpolation of the environment": with_config("x: ${oc.env:HOME}\n"),
    "a billion layers": setting("num_layers", "1000000000"),
    "a billion experts": setting("num_moe_experts", "1000000000"),
    "no layers": setting("num_layers", "0"),
    "negative heads": setting("num_attention_heads", "-4"),
    "no heads": setting("num_attention_heads", "0"),
    "a width that is no number": setting("hidden_size", ".nan"),
    "an infinite width": setting("hidden_size", ".inf"),
    "an evil index": lambda folder: changed(DIST, folder, index=lambda old: EVIL),
    "an evil second rank": lambda folder: changed(
        RANKS, folder, rank=lambda old: repickled(old, lambda pickled: EVIL)
    ),
    "a compressed bomb": lambda folder: changed(RANKS, folder, rank=deflated),
    "absurd shapes": lambda folder: changed(RANKS, folder, rank=lambda old: repickled(old, larger)),
    "an index of absurd shapes": lambda folder: changed(DIST, folder, index=larger),
}

HARMLESS = {
    "an evil common file": lambda folder: changed(
        DIST, folder, common=lambda old: repickled(old, lambda pickled: EVIL)
    ),
    "a target that is no model": setting("target", "os.system"),
    "things to instantiate": with_config("x: {_target_: os.system, _args_: ['touch evil']}\n"),
    "a tokenizer above the archive": tokenizer("nemo:../../../../../../../../etc/passwd"),
    "a tokenizer by absolute path": tokenizer("/etc/passwd"),
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_a_sentence_and_nothing_is_written(name, tmp_path, quiet):
    path = REFUSED[name](tmp_path)
    began = time.monotonic()
    with pytest.raises(NemoAlignError) as refusal:
        convert(path, tmp_path / "here" / "out.nemo", reporter=quiet)
    assert time.monotonic() - began < SECONDS
    assert refusal.value.exit_code in (3, 4)
    assert 40 < len(str(refusal.value)) < 1500
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("name", HARMLESS)
def test_it_is_read_without_doing_what_it_says(name, tmp_path, quiet):
    path = HARMLESS[name](tmp_path)
    convert(path, tmp_path / "here" / "out.nemo", reporter=quiet)
    written = sorted(file.name for file in (tmp_path / "here").iterdir())
    assert written == ["out.nemo", "out.nemo.conversion.json"]
    assert b"root:" not in b"".join(members(tmp_path / "here" / "out.nemo").values())


def test_the_archive_they_are_made_from_is_good(tmp_path, quiet):
    convert(changed(RANKS, tmp_path), tmp_path / "out.nemo", reporter=quiet)
