from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemoalign.archive.files import open_container
from nemoalign.archive.regions import Region
from nemoalign.archive.shards import read_shards
from nemoalign.errors import ContentError, SourceError


def names_in(region: Region, file: str) -> dict[str, str]:
    """Read a shard that is a list of names; each is in the file itself."""
    return dict.fromkeys(region.read(100).decode().split(), file)


def shards(folder: Path, files: dict[str, str], index: object) -> dict[str, str]:
    for file, names in files.items():
        (folder / file).write_text(names)
    (folder / "index.json").write_text(json.dumps(index))
    return read_shards(open_container(folder), "index.json", names_in)


def test_every_name_is_found_in_its_file(tmp_path: Path) -> None:
    index = {"metadata": {"total_size": 9}, "weight_map": {"a": "1", "b": "2", "c": "1"}}
    assert shards(tmp_path, {"1": "a c", "2": "b"}, index) == {"a": "1", "c": "1", "b": "2"}


@pytest.mark.parametrize(
    ("index", "error", "match"),
    [
        ({}, SourceError, 'no "weight_map"'),
        ([], SourceError, "not a JSON object"),
        ({"weight_map": {"a": "1", "c": "1", "b": "3"}}, SourceError, "has no 3"),
        ({"weight_map": {"a": "1", "b": "../2"}}, SourceError, r"has no \.\./2"),
        ({"weight_map": {"a": "1", "b": 2, "c": "1"}}, ContentError, "places in 2"),
        ({"weight_map": {"a": "1"}}, ContentError, "places in None"),
        ({"weight_map": {"a": "1", "b": "2"}}, ContentError, "'c', which .* places in None"),
        ({"weight_map": {"a": "1", "c": "1", "d": "1"}}, ContentError, "lists 'd'"),
    ],
)
def test_an_index_that_contradicts_its_files_is_refused(
    index: object, error: type[Exception], match: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        shards(tmp_path, {"1": "a c", "2": "b"}, index)
