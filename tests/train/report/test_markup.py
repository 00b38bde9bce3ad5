"""Text that is shown, never obeyed."""

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from nemoalign.train.report.markup import Html, join, table, tag, text


class Seen(HTMLParser):
    """What a browser would make of markup: elements with attributes, and the text between them."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, name, attrs):
        self.tags.append((name, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@settings(max_examples=40)
@given(st.text(), st.text())
def test_no_text_becomes_an_element_or_leaves_its_attribute(inside, attribute) -> None:
    seen = Seen(tag("p", inside, title=attribute))
    assert [name for name, _ in seen.tags] == ["p"]
    assert seen.tags[0][1].keys() == {"title"}


@settings(max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Cn"])))
def test_text_is_shown_as_it_is(words) -> None:
    assert Seen(tag("p", words)).text == words


def test_what_hides_or_turns_text_around_is_made_visible() -> None:
    assert text("a\x00b\x1b[31m\u202eevil\ud800") == "a␀b␛[31m\ufffdevil\ufffd"
    assert text("line\n\ttab") == "line\n\ttab"


def test_markup_is_kept_and_attributes_are_spelled_as_html_does() -> None:
    assert tag("p", tag("b", "<x>"), class_="y", data_z=1) == (
        '<p class="y" data-z="1"><b>&lt;x&gt;</b></p>'
    )
    assert join(["a", Html("<br>"), "&"], "-") == "a-<br>-&amp;"
    assert "<td>&lt;</td><td>2</td>" in table(("n", "m"), [["<", 2]])
