"""Prompt templates as text."""

from nemoalign.config.prompts import named_piece, pieces, unescaped


def test_a_template_is_cut_where_nemo_cuts_it():
    cut = pieces("Q:  {question}\nA: {answer}")
    assert cut == ["Q:", "  {question}", "\nA:", " {answer}"]
    assert [named_piece(piece) for piece in cut] == [
        ("Q:", None), ("  ", "question"), ("\nA:", None), (" ", "answer"),
    ]  # fmt: skip


def test_typed_escapes_are_characters():
    assert unescaped(r"a\nb\x41\frac") == "a\nbA\\frac"
