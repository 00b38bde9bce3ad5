from __future__ import annotations

import contextlib
import pickle
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.archive import pickles
from nemoalign.archive.pickles import MAX_BYTES, load_pickle
from nemoalign.errors import ContentError, SourceError
from tests.archive.makers import calling

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.binary(min_size=300, max_size=300)
)
keys = st.text() | st.integers(-(2**59), 2**59) | st.booleans() | st.none() | st.binary()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(keys, inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
    ),
    max_leaves=20,
)


@given(values, st.integers(2, 5))
def test_plain_values_are_what_pythons_unpickler_gives(value: object, protocol: int) -> None:
    found = load_pickle(pickle.dumps(value, protocol), "test")
    assert repr(found) == repr(value)


def test_shared_and_cyclic_values_stay_shared() -> None:
    inner = [1]
    outer = {"a": inner, "b": inner}
    outer["self"] = outer
    found = load_pickle(pickle.dumps(outer), "test")
    assert found["a"] is found["b"]
    assert found["self"] is found


EVIL = [
    ("os", "system", ("touch evil",)),
    ("posix", "system", ("touch evil",)),
    ("builtins", "eval", ("open('evil', 'w')",)),
    ("builtins", "exec", ("open('evil', 'w')",)),
    ("__builtin__", "eval", ("open('evil', 'w')",)),
    ("builtins", "open", ("evil", "w")),
    ("pathlib", "os.mkdir", ("evil",)),
    ("pathlib", "Path.touch", ("evil",)),
    ("subprocess", "Popen", (["touch", "evil"],)),
    ("runpy", "run_path", ("evil",)),
    ("torch", "load", ("evil",)),
    ("torch.hub", "load", ("evil",)),
    ("torch._utils", "_import_dotted_name", ("this",)),
    ("torch.storage", "_load_from_bytes", (b"evil",)),
    ("numpy.core.multiarray", "fromfile", ("evil",)),
    ("importlib", "import_module", ("this",)),
]


@pytest.mark.parametrize(("module", "name", "args"), EVIL)
@pytest.mark.parametrize("protocol", [2, 4])
def test_an_evil_pickle_does_nothing(
    module: str,
    name: str,
    args: tuple[object, ...],
    protocol: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = calling(module, name, *args, protocol=protocol)
    before = set(sys.modules)
    with pytest.raises(SourceError, match=rf"weights\.ckpt names '{module}\.{name}'"):
        load_pickle(data, "weights.ckpt")
    assert list(tmp_path.iterdir()) == []
    assert set(sys.modules) == before


@pytest.mark.parametrize("name", ["os.system", "Planner", "a.b.c"])
def test_a_function_in_an_allowed_package_is_not_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = load_pickle(calling("omegaconf", name, "touch evil"), "test")
    assert (found.kind, found.args) == (name.rpartition(".")[2], ("touch evil",))
    assert list(tmp_path.iterdir()) == []


def test_naming_a_module_does_not_import_it() -> None:
    data = calling("nemo.collections.nlp.evil", "Planner", 1)
    found = load_pickle(data, "test")
    assert (found.kind, found.args) == ("Planner", (1,))
    assert not [name for name in sys.modules if name.startswith("nemo.")]


def test_only_names_on_the_list_are_called() -> None:
    with pytest.raises(SourceError, match="is called"):
        load_pickle(b"\x80\x02X\x03\x00\x00\x00abc)R.", "test")


def test_a_class_on_the_list_cannot_be_changed() -> None:
    data = b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb."
    with pytest.raises(SourceError, match="given a state"):
        load_pickle(data, "test")


def test_a_huge_memo_number_allocates_nothing() -> None:
    assert load_pickle(b"\x80\x02K\x01r\xff\xff\xff\xff.", "test") == 1


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    ],
)
def test_an_announced_length_allocates_nothing(data: bytes) -> None:
    with pytest.raises(SourceError, match="announced"):
        load_pickle(data, "test")


def test_nested_tuples_as_a_key_do_not_overflow_the_stack() -> None:
    data = b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."
    with pytest.raises(SourceError, match="a key"):
        load_pickle(data, "test")


def test_deep_nesting_is_no_problem_in_itself() -> None:
    found = load_pickle(b"\x80\x02)" + b"\x85" * 100_000 + b".", "test")
    assert len(found) == 1


def test_numbers_made_to_collide_are_no_keys() -> None:
    with pytest.raises(SourceError, match="a key"):
        load_pickle(pickle.dumps({(2**61 - 1) * 3: 1}), "test")


def test_a_number_too_long_to_print_is_refused() -> None:
    assert load_pickle(pickle.dumps(-(1 << 1000)), "test") == -(1 << 1000)
    with pytest.raises(SourceError, match="2001 bytes"):
        load_pickle(pickle.dumps(1 << 16_000), "test")


def test_values_that_double_at_every_level_are_never_printed() -> None:
    """The text of such a value would fill any memory, also in an error."""
    bomb: object = ()
    for _ in range(60):
        bomb = (bomb, bomb)
    size = pickle.dumps((bomb,), 2)[2:-1]
    for data in (
        b"\x80\x02ctorch\nSize\n" + size + b"\x85R.",
        b"\x80\x02ctorch\nSize\n" + size + b"R.",
        b"\x80\x02" + size + b"R.",
        b"\x80\x02}" + size + b"K\x01s.",
    ):
        with pytest.raises(SourceError, match="test"):
            load_pickle(data, "test")


def test_a_pickle_that_is_too_long_is_not_read() -> None:
    with pytest.raises(SourceError, match=str(MAX_BYTES)):
        load_pickle(bytes(MAX_BYTES + 1), "test")


def test_steps_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_STEPS", 100)
    with pytest.raises(SourceError, match="more than 100 steps"):
        load_pickle(b"\x80\x02" + b"N0" * 60 + b"N.", "test")


@pytest.mark.parametrize("value", [{"a": [1, (2, 3)], "b": "text"}, [b"x" * 300, 1 << 70, 0.5]])
def test_a_pickle_cut_anywhere_is_refused(value: object) -> None:
    data = pickle.dumps(value, 4)
    for length in range(len(data)):
        with pytest.raises(SourceError, match=r"cut\.pkl"):
            load_pickle(data[:length], "cut.pkl")


@given(st.binary(max_size=200))
def test_random_bytes_give_a_value_or_our_error(data: bytes) -> None:
    with contextlib.suppress(SourceError, ContentError):
        load_pickle(b"\x80\x02" + data, "random.pkl")
