from __future__ import annotations

import argparse
import collections
import fractions
import io
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.archive.pickle_write import Call, Global, Instance, Persistent, dump_pickle
from nemoalign.archive.pickles import load_pickle

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
    ),
    max_leaves=20,
)


@given(values)
def test_python_and_our_reader_load_what_was_written(value: object) -> None:
    data = dump_pickle(value)
    assert pickle.loads(data) == value == load_pickle(data, "test")


def test_a_call_is_made_by_python() -> None:
    data = dump_pickle(Call(Global("fractions", "Fraction"), (3, 4)))
    assert pickle.loads(data) == fractions.Fraction(3, 4)


def test_entries_are_set_in_the_result_of_a_call() -> None:
    data = dump_pickle(Call(Global("collections", "OrderedDict"), (), {"b": 1, "a": 2}))
    assert pickle.loads(data) == collections.OrderedDict(b=1, a=2)


def test_an_instance_gets_its_state() -> None:
    namespace = Instance(Global("argparse", "Namespace"), {"a": 1})
    assert pickle.loads(dump_pickle(namespace)) == argparse.Namespace(a=1)
    bare = pickle.loads(dump_pickle([Instance(Global("argparse", "Namespace"))]))
    assert vars(bare[0]) == {}


def test_an_instance_may_be_a_key() -> None:
    key = Instance(Global("argparse", "Namespace"))
    assert load_pickle(dump_pickle({key: 5}), "test").popitem()[1] == 5


def test_more_texts_than_a_byte_counts_are_recalled() -> None:
    texts = [f"text {number}" for number in range(600)]
    data = dump_pickle([*texts, *texts, Global("fractions", "Fraction")])
    assert pickle.loads(data) == [*texts, *texts, fractions.Fraction]
    assert data.count(b"text 599") == 1


def test_a_reference_reaches_the_loader() -> None:
    class Loader(pickle.Unpickler):
        def persistent_load(self, pid: object) -> object:
            return ("loaded", pid)

    data = dump_pickle([Persistent(("storage", "0"))])
    assert Loader(io.BytesIO(data)).load() == [("loaded", ("storage", "0"))]


def test_a_value_of_another_type_is_our_mistake() -> None:
    with pytest.raises(KeyError):
        dump_pickle({"a": 1.5})
