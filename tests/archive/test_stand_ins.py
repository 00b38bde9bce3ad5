from __future__ import annotations

import argparse
import collections
import datetime
import enum
import io
import pathlib
import pickle

import numpy as np
import pytest
import torch

from nemoalign.archive.dtypes import DTYPES
from nemoalign.archive.pickles import load_pickle
from nemoalign.archive.stand_ins import Known, Record, StorageRef, TensorRef, persistent, resolve
from nemoalign.archive.store import TensorInfo
from nemoalign.errors import ContentError, SourceError
from tests.archive.makers import calling


def load(value: object) -> object:
    return load_pickle(pickle.dumps(value, 2), "test")


@pytest.mark.parametrize("name", DTYPES)
def test_torch_types_become_our_types(name: str) -> None:
    assert load(getattr(torch, name)) is DTYPES[name]


def test_sizes_become_tuples() -> None:
    assert load(torch.Size([2, 0, 5])) == (2, 0, 5)


def test_collections_become_dicts() -> None:
    assert load(collections.OrderedDict(a=1, b=[2])) == {"a": 1, "b": [2]}
    assert load(collections.defaultdict(list, a=[1])) == {"a": [1]}
    assert load(collections.Counter("aab")) == {"a": 2, "b": 1} or load(collections.Counter()) == {}


def test_an_ordered_dict_with_attributes_loses_only_those() -> None:
    value = torch.nn.Linear(1, 1).state_dict()
    value._metadata = {"": 1}
    assert load_pickle(pickle.dumps(collections.OrderedDict(x=1)), "test") == {"x": 1}
    state = b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb."
    assert load_pickle(state, "test") == {}


def test_bytes_of_protocol_2_are_bytes() -> None:
    assert load(b"\x00\xff") == b"\x00\xff"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (io.BytesIO(b"abc"), "BytesIO"),
        (argparse.Namespace(a=1), "Namespace"),
        (pathlib.PurePosixPath("a/b"), "PurePosixPath"),
        (datetime.timedelta(1), "timedelta"),
        (np.float32(1.5), "scalar"),
        (np.arange(3), "_reconstruct"),
        (torch.device("cpu"), "device"),
        (torch.strided, "_get_layout"),
        ({1, 2}, "set"),
        (1j, "complex"),
    ],
)
def test_foreign_objects_become_records(value: object, kind: str) -> None:
    found = load(value)
    assert isinstance(found, Record)
    assert found.kind == kind


def test_attributes_of_an_object_are_kept() -> None:
    found = load(argparse.Namespace(a=1, b=[2]))
    assert found.fields == {"a": 1, "b": [2]}


def test_a_state_that_is_no_dictionary_is_kept_apart() -> None:
    assert load(io.BytesIO(b"abc")).state[0] == b"abc"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.distributed.checkpoint.metadata", "Metadata"),
        ("torch.distributed.checkpoint.planner", "SavePlan"),
        ("torch.distributed._shard.checkpoint.metadata", "Metadata"),
        ("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"),
        ("nemo.utils.callbacks.dist_ckpt_io", "Anything"),
        ("omegaconf.dictconfig", "DictConfig"),
        ("lightning.fabric.utilities.data", "AttributeDict"),
    ],
)
def test_classes_of_checkpoint_writers_are_inert(module: str, name: str) -> None:
    found = load_pickle(calling(module, name, 1, "a"), "test")
    assert (found.kind, found.args) == (name, (1, "a"))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("megatronx.core", "A"),
        ("nemo", "a b"),
        ("nemo", ""),
        ("torch", "load"),
        ("torch.distributed", "init_process_group"),
        ("pathlib", "os"),
    ],
)
def test_names_that_only_look_alike_are_refused(module: str, name: str) -> None:
    with pytest.raises(SourceError, match="refused before anything ran"):
        resolve(module, name, "test")


def test_an_unknown_storage_is_refused() -> None:
    with pytest.raises(ContentError, match="ComplexFloatStorage"):
        resolve("torch", "ComplexFloatStorage", "test")


def test_storages_are_found_by_their_type() -> None:
    typed = persistent(("storage", resolve("torch", "HalfStorage", ""), "7", "cpu", 3), "test")
    assert typed == StorageRef("7", "float16", 3)
    untyped = resolve("torch.storage", "UntypedStorage", "")
    assert persistent(("storage", untyped, "7", "cpu", 3), "test") == StorageRef("7", None, 3)


@pytest.mark.parametrize(
    "pid",
    [
        None,
        ("storage",),
        ("module", Known("torch.FloatStorage", Record), "0", "cpu", 1),
        ("storage", Known("torch.FloatStorage", Record), "0", "cpu", -1),
        ("storage", "FloatStorage", "0", "cpu", 1),
    ],
)
def test_other_references_are_refused(pid: object) -> None:
    with pytest.raises(SourceError, match="unknown way"):
        persistent(pid, "test")


REBUILD = resolve("torch._utils", "_rebuild_tensor_v2", "")
STORAGE = StorageRef("0", "float32", 6)


def test_a_tensor_says_where_its_bytes_are() -> None:
    found = REBUILD.call((STORAGE, 1, (2, 2), (2, 1), False, {}))
    assert found == TensorRef(TensorInfo((2, 2), "float32"), (2, 1), 1, STORAGE)


@pytest.mark.parametrize(
    "args",
    [
        (STORAGE, 0, (2,), (2, 1)),
        (STORAGE, -1, (2,), (1,)),
        (STORAGE, 0.5, (2,), (1,)),
        (STORAGE, 0, (-2,), (1,)),
        (STORAGE, 0, (2,), (-1,)),
        (STORAGE, 0, (1 << 60,), (1,)),
        ("storage", 0, (2,), (1,)),
        (StorageRef("0", None, 6), 0, (2,), (1,)),
    ],
)
def test_an_impossible_tensor_is_refused(args: tuple[object, ...]) -> None:
    with pytest.raises((SourceError, TypeError)):
        REBUILD.call(args)


def test_parameters_are_the_tensors_they_hold() -> None:
    call = resolve("torch._utils", "_rebuild_parameter", "").call
    assert call((STORAGE, True, {})) is STORAGE


def test_members_of_an_enum_are_records() -> None:
    """Python has pickled enums as a call of the class, or as getattr on it."""
    assert load_pickle(calling("megatron.core.enums", "ModelType", 1), "test").args == (1,)
    pickled = (
        b"\x80\x02c__builtin__\ngetattr\ncmegatron.core.enums\nModelType\nX\x01\x00\x00\x00a\x86R."
    )
    assert load_pickle(pickled, "test").kind == "ModelType.a"
    assert issubclass(enum.IntEnum, enum.Enum)


def test_getattr_on_a_value_is_refused() -> None:
    with pytest.raises(SourceError, match="classes only"):
        load_pickle(calling("builtins", "getattr", "text", "format"), "test")


def test_text_is_encoded_as_latin_1_only() -> None:
    with pytest.raises(SourceError, match="latin-1"):
        load_pickle(calling("_codecs", "encode", "text", "rot13"), "test")
