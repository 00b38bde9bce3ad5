"""A context is read as data, whatever it names and however it is built."""

from __future__ import annotations

import json

import pytest

from nemoalign.archive.files import Container, Region, open_container
from nemoalign.checkpoint.sources.nemo2_context import read_model_tree, short_name
from nemoalign.errors import NemoAlignError, SourceError
from tests.checkpoint.models import FIXTURES


def tree_of(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return read_model_tree(open_container(folder))


def tree_at(file):
    region = Region(file, 0, file.stat().st_size)
    return read_model_tree(Container(file.parent, "directory", {"io.json": region}))[0]


def fiddle(root, **objects):
    return {"root": root, "objects": objects, "version": "0.0.1"}


def ref(key):
    return {"type": "ref", "key": key}


def config(cls, **items):
    kind = {"type": "pyref", "module": "fiddle._src.config", "name": "Config"}
    fn = {"type": "pyref", "module": "a.b", "name": cls}
    metadata = {
        "type": {"type": "pyref", "module": "x", "name": "BuildableTraverserMetadata"},
        "items": [["Attr(name='fn_or_cls')", fn]],
        "metadata": None,
    }
    named = [[f"Attr(name='{name}')", value] for name, value in items.items()]
    return {"type": kind, "items": named, "metadata": metadata, "paths": ["<root>"]}


def test_fiddles_references_become_a_tree(tmp_path):
    silu = {"type": "pyref", "module": "torch.nn.functional", "name": "silu"}
    leaf = {"type": "leaf", "value": 4, "paths": ["<root>.model.config.num_layers"]}
    content = fiddle(
        ref("context_1"),
        context_1=config("TrainerContext", model=ref("model_1")),
        model_1=config("LlamaModel", config=ref("config_1")),
        config_1=config("LlamaConfig", num_layers=leaf, activation_func=silu),
    )
    tree, file = tree_of(tmp_path, "io.json", content)
    assert file == "io.json"
    assert tree == {
        "_target_": "a.b.LlamaModel",
        "config": {
            "_target_": "a.b.LlamaConfig",
            "num_layers": 4,
            "activation_func": {"_target_": "torch.nn.functional.silu"},
        },
    }
    assert short_name(tree["config"]["activation_func"]) == "silu"


def test_a_file_that_fiddle_wrote_is_read():
    root = FIXTURES / "fiddle_io.json"
    tree = tree_at(root)
    assert tree == {
        "_target_": "fakemod.Model",
        "config": {
            "_target_": "fakemod.Conf",
            "num_layers": 2,
            "window": [4, 0],
            "act": {"_target_": "fakemod.silu"},
        },
        "tokenizer": None,
    }


def nested(depth):
    objects = {f"o{i}": config("X", a=ref(f"o{i + 1}")) for i in range(depth)}
    return fiddle(ref("o0"), **objects, **{f"o{depth}": config("X")})


def doubling(levels):
    objects = {f"o{i}": config("X", a=ref(f"o{i + 1}"), b=ref(f"o{i + 1}")) for i in range(levels)}
    return fiddle(ref("o0"), **objects, **{f"o{levels}": config("X")})


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[" * 100_000,
        "[]",
        {},
        {"objects": {}},
        fiddle(ref("nothing")),
        fiddle(ref("o0"), o0=config("X", a=ref("o0"))),
        nested(1000),
        doubling(40),
        fiddle({"type": "code", "value": "print()"}),
        fiddle({"type": {"name": "X"}, "items": ["a"], "metadata": None}),
        fiddle({"type": {"name": "X"}, "items": [[1, 2]], "metadata": None}),
    ],
)
def test_what_is_no_description_is_refused_in_a_sentence(content, tmp_path):
    with pytest.raises(SourceError, match="is no description of a model"):
        tree_of(tmp_path, "io.json", content)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1, 1, 1, 1]\nb: [" + "*a, " * 90_000 + "1]",
        "a: &a\n  b: *a\n",
        "a: " + "[" * 1000 + "]" * 1000,
        "config: !!python/object/apply:os.system ['touch hacked']",
        "config: ${oc.env:HOME}",
    ],
)
def test_yaml_that_is_an_attack_is_refused(text, tmp_path):
    with pytest.raises(NemoAlignError):
        tree_of(tmp_path, "model.yaml", text)


def test_a_context_without_either_file_says_what_it_holds(tmp_path):
    with pytest.raises(SourceError, match=r"holds notes\.txt"):
        tree_of(tmp_path, "notes.txt", "hello")
