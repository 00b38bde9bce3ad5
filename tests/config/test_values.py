"""Values as people write them."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.config.fields import Entry, Setting
from nemoalign.config.layers import read_text
from nemoalign.config.merge import _parse
from nemoalign.config.values import (
    DataFile,
    Duration,
    Every,
    Reject,
    RewardSource,
    convert,
    plain,
)


@pytest.mark.parametrize(
    ("written", "steps_per_epoch", "steps"),
    [
        ("100", 7, 100),
        (100, 7, 100),
        ("0.5", 7, 3),
        (0.5, 7, 3),
        (1.0, 7, 7),
        ("1.0", 7, 7),
        ("1epoch", 7, 7),
        ("2epochs", 7, 14),
        ("2 epochs", 7, 14),
        ("0.01", 7, 1),
        ("0", 7, 0),
        (0.0, 7, 0),
    ],
)
def test_an_interval_counts_steps_shares_or_epochs(written, steps_per_epoch, steps):
    assert Every.parse(written).steps(steps_per_epoch) == steps


@given(st.integers(0, 10**6) | st.floats(0, 1e6) | st.integers(0, 99).map(lambda n: f"{n}epoch"))
def test_an_interval_survives_being_written(written):
    every = Every.parse(written)
    assert Every.parse(every.plain) == every
    assert Every.parse(str(every)) == every


@pytest.mark.parametrize("written", ["", "often", "-1", "epoch", "nan", "inf", True])
def test_what_is_no_interval_is_refused(written):
    with pytest.raises(Reject):
        Every.parse(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1-12:30:05", 131405),
        ("01:12:30:05", 131405),
        ("12:30:05", 45005),
        ("30:05", 1805),
        ("2-06", 194400),
        ("2-06:30", 196200),
        ("90", 90),
        (45000, 45000),
    ],
)
def test_durations_as_slurm_and_nemo_write_them(written, seconds):
    assert Duration.parse(written) == Duration(seconds)


@given(st.integers(0, 10**7))
def test_a_duration_survives_being_written(seconds):
    assert Duration.parse(str(Duration(seconds))) == Duration(seconds)


@pytest.mark.parametrize("written", ["", "soon", "1:2:3:4:5", "-1", "1.5", "1-", "1h"])
def test_what_is_no_duration_is_refused(written):
    with pytest.raises(Reject, match="D-HH:MM:SS"):
        Duration.parse(written)


@pytest.mark.parametrize(
    ("written", "path", "weight"),
    [
        ("a.jsonl", "a.jsonl", None),
        ("a.jsonl:0.7", "a.jsonl", 0.7),
        ("a.jsonl:2", "a.jsonl", 2.0),
        ("dir:x/a.jsonl", "dir:x/a.jsonl", None),
        ("a:b.jsonl:.5", "a:b.jsonl", 0.5),
    ],
)
def test_a_data_file_may_have_a_weight(written, path, weight):
    file = DataFile.parse(written)
    assert (file.path, file.weight) == (Path(path), weight)
    assert DataFile.parse(str(file)) == file


@pytest.mark.parametrize("written", ["", 3, None, "a.jsonl:0"])
def test_what_is_no_data_file_is_refused(written):
    with pytest.raises(Reject):
        DataFile.parse(written)


@pytest.mark.parametrize(
    ("written", "source"),
    [
        ("rm.nemo", RewardSource(path=Path("rm.nemo"))),
        ("rm.nemo:0.5", RewardSource(path=Path("rm.nemo"), weight=0.5)),
        ("unpacked:-1", RewardSource(path=Path("unpacked"), weight=-1.0)),
        ("odd:2", RewardSource(path=Path("odd:2"))),
        ("odd:2:.5", RewardSource(path=Path("odd:2"), weight=0.5)),
        ("odd:score", RewardSource(path=Path("odd:score"))),
        (Path("rm.nemo"), RewardSource(path=Path("rm.nemo"))),
        ("my_module:score", RewardSource(module="my_module", function="score")),
        ("a.b:score:1e-1", RewardSource(module="a.b", function="score", weight=0.1)),
        ("some where/it.py:score", RewardSource(module="some where/it.py", function="score")),
        ("rewards.py:f:+2", RewardSource(module="rewards.py", function="f", weight=2.0)),
        ("odd:one", RewardSource(module="odd", function="one")),
    ],
)
def test_a_reward_comes_from_a_checkpoint_or_a_function(tmp_path, monkeypatch, written, source):
    monkeypatch.chdir(tmp_path)
    Path("unpacked").mkdir()
    for name in ("rm.nemo", "odd:2", "odd:score", "rewards.py"):
        Path(name).touch()
    assert RewardSource.parse(written) == source
    assert RewardSource.parse(str(source)) == source
    assert RewardSource.parse(source) is source


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("", "MODULE:FUNCTION"),
        (3, "MODULE:FUNCTION"),
        (None, "a checkpoint that exists"),
        ("absent.nemo", "or FILE.py:FUNCTION, .*there is no file absent.nemo$"),
        ("absent.nemo:0.5", "there is no file absent.nemo$"),
        ("my_module", "there is no file my_module"),
        ("my-module:score", "there is no file my-module:score"),
        ("my_module:lambda", "there is no file"),
        (".py:score", "there is no file"),
        ("my_module:", "there is no file"),
        (":0.5", "there is no file"),
        ("my_module:score:0", "finite weight other than 0"),
        ("my_module:score:1e999", "finite weight other than 0"),
        ("my_module:score:nan", "there is no file"),
        ("rewards.py", "name a function of rewards.py: rewards.py:FUNCTION"),
        ("rewards.py:0.5", "name a function of rewards.py: rewards.py:FUNCTION"),
        ("x" * 5000, "there is no file"),
    ],
)
def test_what_gives_no_reward_is_refused(tmp_path, monkeypatch, written, says):
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").touch()
    with pytest.raises(Reject, match=says):
        RewardSource.parse(written)


_weights = st.floats(allow_nan=False, allow_infinity=False).filter(bool)
_functions = st.builds(
    RewardSource,
    module=st.sampled_from(["m", "a.b_c", "x y/z.py", "ü", "d:e.py"]),
    function=st.sampled_from(["score", "f1", "é"]),
    weight=_weights,
)


@given(_functions | st.tuples(st.text("ab:.51e-", min_size=1, max_size=8), _weights))
def test_a_source_of_rewards_survives_being_written(source):
    with tempfile.TemporaryDirectory() as folder:
        if not isinstance(source, RewardSource):
            path = Path(folder, f"it{source[0]}")
            path.touch()
            source = RewardSource(path=path, weight=source[1])
        assert RewardSource.parse(str(source)) == source
        (written,) = plain(convert([source], tuple[RewardSource, ...]))
        assert RewardSource.parse(written) == source


@pytest.mark.parametrize(
    ("written", "count"),
    [("m:f", 1), ("m:f:0.5", 1), ("rm,it.nemo", 1), ("[m:f, 'rm,it.nemo:2', m:g:-1]", 3)],
)
def test_sources_are_read_from_settings_as_typed(tmp_path, monkeypatch, written, count):
    monkeypatch.chdir(tmp_path)
    Path("rm,it.nemo").touch()
    entry = Entry("model.ppo.reward", tuple[RewardSource, ...], (), Setting(help=""))
    assert len(entry.read(read_text(written, entry, _parse))) == count


@pytest.mark.parametrize(
    ("value", "target", "result"),
    [
        ("3", int, 3),
        (3.0, int, 3),
        ("1e3", int, 1000),
        ("1e-5", float, 1e-5),
        ("true", bool, True),
        (32, str, "32"),
        (None, int | None, None),
        ("5", int | None, 5),
        ("x", Path | None, Path("x")),
        ("a, b", tuple[str, ...], ("a", "b")),
        (["a"], tuple[str, ...], ("a",)),
        ([0.9, "0.98"], tuple[float, float], (0.9, 0.98)),
        (1, int | float, 1),
        (1.0, int | float, 1.0),
        (["a:1", "b"], tuple[DataFile, ...], (DataFile(Path("a"), 1.0), DataFile(Path("b")))),
    ],
)
def test_values_become_what_the_field_is(value, target, result):
    converted = convert(value, target)
    assert converted == result
    assert type(converted) is type(result)


@pytest.mark.parametrize(
    ("value", "target"),
    [
        ("3.5", int),
        (True, int),
        (True, float),
        ("nan", float),
        ("inf", float),
        ("maybe", bool),
        (1, bool),
        (True, str),
        ([1], str),
        ("", Path),
        (None, int),
        ([0.9], tuple[float, float]),
    ],
)
def test_wrong_types_are_refused_not_guessed(value, target):
    with pytest.raises(Reject, match=r"^must"):
        convert(value, target)


def test_plain_values_are_what_yaml_holds():
    files = (DataFile(Path("a"), 0.5),)
    assert plain((files, Path("x"), Every(0.1, epochs=True), Duration(3600), 3)) == [
        ["a:0.5"],
        "x",
        0.1,
        "0-01:00:00",
        3,
    ]
