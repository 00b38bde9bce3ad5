"""What a report brings along instead of asking a network for it."""

import re

from nemoalign.train.report.look import SCRIPT, STYLE


def test_it_names_no_address_and_has_both_colours() -> None:
    assert not re.search(r"https?:|//|@import|url\(", STYLE + SCRIPT)
    assert "prefers-color-scheme: dark" in STYLE
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    names = [set(re.findall(r"(--\w+):", part)) for part in (light, dark)]
    assert names[0] == names[1]
    assert set(re.findall(r"var\((--\w+)\)", STYLE)) == names[0]
