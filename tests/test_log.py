import pytest

from nemoalign.log import PlainReporter, speaking_rank


def test_talk_goes_to_stderr_and_quiet_keeps_only_warnings(capsys) -> None:
    PlainReporter().say("hello")
    quiet = PlainReporter(quiet=True)
    quiet.say("not this")
    quiet.warn("but this")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "hello\nwarning: but this\n"


def test_metrics_are_short_on_the_screen(capsys) -> None:
    PlainReporter().metrics({"step": 3, "loss": 1 / 3})
    assert capsys.readouterr().err == "step=3 loss=0.333333\n"


def test_parts_of_a_sample_stand_in_brackets(capsys) -> None:
    PlainReporter().sample([("masked", "Q "), ("trained", "yes"), ("truncated", " and no")])
    assert capsys.readouterr().err == "Q ⟦yes⟧⟨ and no⟩\n"


def test_a_bar_on_a_pipe_counts_in_silence(capsys) -> None:
    with PlainReporter().progress("reading", 10, "bytes") as bar:
        bar.advance(10, loss=1.0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("rank", "speaks"), [(None, True), ("0", True), ("1", False)])
def test_only_rank_zero_speaks(monkeypatch, rank, speaks) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert speaking_rank() is speaks
