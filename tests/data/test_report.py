from nemoalign.data.report import DataReport, FileReport


def filled():
    return FileReport(
        "a.jsonl",
        "messages",
        rows=3,
        dropped=1,
        truncated=2,
        longest=512,
        median=306,
        tokens=612,
        trained_tokens=100,
    )


def test_a_file_is_one_sentence_with_only_what_occurred():
    assert filled().line(512) == (
        "a.jsonl: 3 rows (messages), 2 cut to 512 tokens, 1 dropped (no answer token left), "
        "612 tokens, 100 trained (16%), longest 512, median 306"
    )
    few = FileReport("b.jsonl", "messages", blank_lines=1, weight=0.5, rows=1, duplicates=1)
    assert few.line(8) == (
        "b.jsonl: 1 row (messages), each used 0.5 times an epoch, 1 duplicate, 1 empty line skipped"
    )
    many = FileReport("b.jsonl", "messages", blank_lines=2, rows=3000, duplicates=1000)
    assert many.line(8) == (
        "b.jsonl: 3,000 rows (messages), 1,000 duplicates, 2 empty lines skipped"
    )


def test_sums_are_over_files():
    report = DataReport("val", 512, (filled(), filled()))
    assert (report.rows, report.dropped, report.truncated, report.longest) == (6, 2, 4, 512)
    assert (report.tokens, report.trained_tokens, report.duplicates, report.blank_lines) == (
        1224,
        200,
        0,
        0,
    )
    assert [line.split(":")[0] for line in report.lines()] == ["val data a.jsonl"] * 2


def test_an_index_that_cannot_be_kept_is_a_problem_with_its_way_out():
    assert DataReport("train", 512, ()).problems() == []
    (problem,) = DataReport("train", 512, (), not_kept="cache: Read-only file system").problems()
    assert "(cache: Read-only file system)" in problem
    assert "index_mapping_dir=DIR" in problem
