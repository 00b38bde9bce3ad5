"""How a person's function is found and called, and which of its answers are rewards."""

import functools
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from nemoalign.rollouts.function_call import FunctionCall, Unusable

FIELDS = {"answer": "42", "level": 2}


def rewards(function, *fields):
    return FunctionCall(function).results([("p", "r", row) for row in fields or (FIELDS,)])


def calls():
    """Functions that return 1 when they got what their parameters ask for."""
    yield lambda prompt, response: (prompt, response) == ("p", "r")
    yield lambda question, text: (question, text) == ("p", "r")
    yield lambda response, prompt: (prompt, response) == ("p", "r")
    yield lambda question, response: (question, response) == ("p", "r")
    yield lambda completion, prompt: (prompt, completion) == ("p", "r")
    yield lambda response: response == "r"
    yield lambda response, answer: (response, answer) == ("r", "42")
    yield lambda prompt, response, level: level == 2
    yield lambda prompt, response, level=5, other=7: (level, other) == (2, 7)
    yield lambda prompt, response, row: row == FIELDS
    yield lambda question, response, row, answer: (row, answer) == (FIELDS, "42")
    yield lambda prompt, response, **fields: fields == FIELDS
    yield lambda prompt, response, answer, **rest: (answer, rest) == ("42", {"level": 2})
    yield lambda *, prompt, response, answer: (prompt, response, answer) == ("p", "r", "42")
    yield lambda a, b, /, answer: (a, b, answer) == ("p", "r", "42")
    yield lambda a, b, answer, /: (a, b, answer) == ("p", "r", "42")
    yield lambda *both: both == ("p", "r")
    yield lambda prompt, *rest, **fields: (prompt, rest, fields) == ("p", ("r",), FIELDS)
    yield functools.partial(lambda prompt, response, level: level == 9, level=9)
    yield type("Judge", (), {"__call__": lambda self, prompt, response: response == "r"})()


@pytest.mark.parametrize("function", calls())
def test_parameters_get_prompt_response_and_the_fields_they_name(function):
    fields = {} if isinstance(function, functools.partial) else FIELDS
    assert rewards(function, fields) == [1.0]


def test_fields_called_as_what_is_given_anyway_do_not_get_in_the_way():
    fields = {"prompt": [{"role": "user"}], "response": "old", "row": 3}
    assert rewards(lambda prompt, response, **rest: rest == {"row": 3}, fields) == [1.0]
    assert rewards(lambda question, text, **rest: rest == fields, fields) == [1.0]


@pytest.mark.parametrize(
    ("returned", "reward"),
    [
        (0.25, 0.25),
        (3, 3.0),
        (True, 1.0),
        (None, None),
        (np.float32(0.5), 0.5),
        (np.int64(-2), -2.0),
        (np.bool_(True), 1.0),
        (np.array([2.0]), 2.0),
        (torch.tensor(0.5), 0.5),
        (Fraction(1, 4), 0.25),
    ],
)
def test_numbers_of_any_kind_are_rewards(returned, reward):
    (found,) = rewards(lambda prompt, response: returned)
    assert (found, type(found)) == (reward, type(reward))


@pytest.mark.parametrize(
    ("returned", "kind", "message"),
    [
        ("0.5", "returned a str", "'0.5'"),
        ([0.5], "returned a list", "[0.5]"),
        (1j, "returned a complex", "1j"),
        (np.zeros(2), "returned a ndarray", "array([0., 0.])"),
        (float("nan"), "returned nan", ""),
        (float("-inf"), "returned -inf", ""),
        (10**400, "returned inf", ""),
    ],
)
def test_all_else_is_a_failure(returned, kind, message):
    expected = {"kind": kind, "message": message, "where": ""}
    assert rewards(lambda prompt, response: returned) == [expected]


class Mute(Exception):
    def __str__(self):
        raise ValueError


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (KeyError("answer"), "raised KeyError", "'answer'"),
        (ValueError("one\ntwo"), "raised ValueError", "one"),
        (ValueError("x" * 999), "raised ValueError", "x" * 200),
        (SystemExit(3), "raised SystemExit", "3"),
        (KeyboardInterrupt(), "raised KeyboardInterrupt", ""),
        (Mute(), "raised Mute", ""),
    ],
)
def test_an_exception_is_a_failure_with_its_line(error, kind, message):
    def fails(prompt, response):
        raise error

    (found,) = rewards(fails)
    assert (found["kind"], found["message"]) == (kind, message)
    file, _, line = found["where"].rpartition(":")
    assert file.endswith("test_function_call.py")
    assert int(line) == fails.__code__.co_firstlineno + 1


def test_what_a_row_does_not_have_is_named():
    (found,) = rewards(lambda prompt, response, answer: 1, {})
    assert found["kind"] == "raised TypeError"
    assert "'answer'" in found["message"]


def batched(function):
    function.batched = True
    return function


def test_a_batched_function_gets_lists():
    function = batched(lambda prompts, responses, rows: [len(prompts), rows[1]["b"], None])
    assert rewards(function, {}, {"b": 5}, {}) == [3.0, 5.0, None]
    assert rewards(batched(lambda p, r, rows: np.array([0.5])), {}) == [0.5]
    failure = {"kind": "returned a NoneType", "message": "None", "where": ""}
    assert rewards(batched(lambda p, r, rows: None), {}, {}) == [failure] * 2
    other = "returned a list of another length"
    failure = {"kind": other, "message": "1 for 2 answers", "where": ""}
    assert rewards(batched(lambda p, r, rows: [1]), {}, {}) == [failure] * 2
    (one, two) = rewards(
        batched(lambda p, r, rows: (1 / row["n"] for row in rows)), {"n": 1}, {"n": 0}
    )
    assert one["kind"] == two["kind"] == "raised ZeroDivisionError"


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda: 1, "has no place for a response. Write: def <lambda>.prompt, response, "),
        (lambda prompt: 1, "has no place for a response"),
        (lambda **fields: 1, "has no place for a response"),
        (batched(lambda prompts, responses: []), "does not take three lists. Write: def "),
    ],
)
def test_a_function_that_takes_something_else_is_refused(function, says):
    with pytest.raises(Unusable, match=says):
        FunctionCall(function)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_functions_are_found_in_modules_packages_and_files(here):
    (here / "some where").mkdir()
    (here / "own_package").mkdir()
    (here / "own_package" / "judge.py").write_text("def f(prompt, response): return 1")
    (here / "some where" / "beside.py").write_text("WORTH = 2")
    code = "from beside import WORTH\ndef f(prompt, response): return WORTH"
    (here / "some where" / "json.py").write_text(code)
    for module, reward in (("own_package.judge", 1.0), ("some where/json.py", 2.0)):
        call = FunctionCall.load(module, "f")
        assert call.results([("p", "r", {})]) == [reward]
        assert call.file.startswith(str(here))
    assert FunctionCall.load("operator", "contains").results([("abc", "b", {})]) == [1.0]


@pytest.mark.parametrize(
    ("module", "function", "says"),
    [
        (
            "absent_module",
            "f",
            "no module absent_module in HERE, .* Start where absent_m",
        ),
        ("absent.inner", "f", "no module absent in HERE.* --reward path/to/absent/inner.py:f$"),
        ("absent.py", "f", "no file HERE/absent.py$"),
        ("whole", "absent", r"whole \(whole.py\) has no absent; its functions are f, g$"),
        ("whole", "NUMBER", "NUMBER of whole is of type int, no function"),
        (
            "needs",
            "f",
            r"importing needs raised ModuleNotFoundError: .*'absent_too' \(needs.py:1\)",
        ),
        ("broken", "f", r"raised SyntaxError: .* \(broken.py:2\). Repair it first$"),
        ("leaves.py", "f", r"importing leaves.py raised SystemExit: 4 \(leaves.py:1\)"),
        ("divides", "f", r"raised ZeroDivisionError: division by zero \(divides.py:2\)"),
    ],
)
def test_what_cannot_be_found_or_imported_is_told(here, module, function, says):
    code = "def f(prompt, response): pass\ndef g(): pass\ndef _h(): pass\nNUMBER = 3\n"
    (here / "whole.py").write_text(code)
    (here / "needs.py").write_text("import absent_too")
    (here / "broken.py").write_text("x = 1\ndef f(:")
    (here / "leaves.py").write_text("raise SystemExit(4)")
    (here / "divides.py").write_text("def f(p, r): pass\n1 / 0")
    with pytest.raises(Unusable, match=says.replace("HERE", str(here))):
        FunctionCall.load(module, function)
