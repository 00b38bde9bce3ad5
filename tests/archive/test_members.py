from __future__ import annotations

from pathlib import Path

import pytest

from nemoalign.archive.members import add_member, normalised
from nemoalign.archive.regions import Region
from nemoalign.errors import SourceError

ARCHIVE = Path("x.nemo")


@pytest.mark.parametrize("name", ["a/b", "./a/b", "a//b", "./a/./b"])
def test_spellings_of_one_name_are_one_name(name: str) -> None:
    assert normalised(ARCHIVE, name) == "a/b"


@pytest.mark.parametrize("name", ["/a", "../a", "a/..", "a/../b", "a\\b", "a\0b"])
def test_a_name_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match=r"x\.nemo contains the member name"):
        normalised(ARCHIVE, name)


def test_a_name_is_taken_once() -> None:
    members: dict[str, Region] = {}
    add_member(ARCHIVE, members, "./a", Region(ARCHIVE, 0, 1))
    with pytest.raises(SourceError, match="the name 'a' twice"):
        add_member(ARCHIVE, members, "a", Region(ARCHIVE, 5, 1))
    assert members == {"a": Region(ARCHIVE, 0, 1)}
