from nemoalign.launch.reports import REPORTS, RankFailure, first_report, report_failure


def _leave(directory, rank, message, code, kind="DataError"):
    environ = {REPORTS: str(directory), "RANK": str(rank)}
    assert report_failure(message, code, kind, "the traceback", environ)


def test_without_a_parent_nothing_is_left(tmp_path) -> None:
    assert not report_failure("words", 3, "SourceError", "", {"RANK": "0"})
    assert first_report(tmp_path) is None


def test_the_first_words_win_but_a_named_error_comes_before_a_bug(tmp_path) -> None:
    _leave(tmp_path, 0, "connection closed", 1)
    _leave(tmp_path, 1, "line 3 is bad", 8)
    _leave(tmp_path, 2, "no memory", 7)
    report = first_report(tmp_path)
    failure = RankFailure(report)
    assert (str(failure), failure.exit_code, failure.kind) == ("line 3 is bad", 8, "DataError")
    assert failure.detail == "the traceback"


def test_a_rank_that_misses_another_is_believed_last(tmp_path) -> None:
    _leave(tmp_path, 0, "Rank 1 went away", 7, "LostRankError")
    assert first_report(tmp_path).exit_code == 7
    _leave(tmp_path, 1, "a bug", 1, "KeyError")
    assert first_report(tmp_path).message == "a bug"


def test_a_parent_that_is_gone_has_taken_its_directory_along(tmp_path) -> None:
    _leave(tmp_path / "gone", 0, "words", 3)
