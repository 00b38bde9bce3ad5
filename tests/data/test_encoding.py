from nemoalign.data.encoding import is_space_sensitive


def test_byte_pieces_carry_their_space_and_sentencepieces_get_one_anyway():
    assert is_space_sensitive(list)
    assert not is_space_sensitive(lambda text: ["▁" + word for word in text.split()])
