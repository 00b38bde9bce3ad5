import pyarrow
import pytest
from pyarrow import parquet

from nemoalign.data.parquet import ParquetFile
from nemoalign.errors import DataError

ROWS = [{"input": f"q{n}", "output": f"a{n}", "tools": None} for n in range(7)]


def table(path, rows, **options):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def test_rows_of_all_groups_are_found_in_any_order(tmp_path):
    file = ParquetFile(table(tmp_path / "t.parquet", ROWS, row_group_size=3))
    assert len(file) == 7
    for number in (6, 0, 3, 2, 5):
        assert file.record(number) == {"input": f"q{number}", "output": f"a{number}"}
    assert file.where(3) == "t.parquet row 3"


def test_conversations_come_as_lists_of_objects(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file = ParquetFile(table(tmp_path / "t.parquet", [{"messages": turns}]))
    assert file.record(0) == {"messages": turns}


def test_an_empty_or_damaged_table_is_said(tmp_path):
    whole = table(tmp_path / "t.parquet", ROWS)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS).slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="empty"):
        ParquetFile(tmp_path / "none.parquet")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged"):
        ParquetFile(cut)
