"""What is written is found again, by whoever reads it, whatever happened to the end of a file."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.train.logprob_store import RECORD, LogprobStore

KEYS = st.binary(min_size=16, max_size=16)
# Zeros at the end of a key are part of it.
KNOWN = st.dictionaries(KEYS | st.just(bytes(16)) | st.just(b"a" + bytes(15)), st.floats(width=32, allow_nan=False))  # fmt: skip


@given(known=KNOWN, asked=st.lists(KEYS))
def test_exactly_what_was_added_is_found(known, asked, tmp_path_factory) -> None:
    directory = tmp_path_factory.mktemp("store") / "new"
    writer = LogprobStore(directory)
    for key, logprob in known.items():
        writer.add([key], np.array([logprob]))
    writer.close()
    reader = LogprobStore(directory)
    assert len(reader) == 0, "nothing is known before the files are listed"
    reader.load(reader.listing())
    assert len(reader) == len(known)
    every = [*known, *asked]
    expected = [known.get(key, np.nan) for key in every]
    np.testing.assert_array_equal(reader.find(every), np.array(expected, np.float32))


def test_a_record_cut_off_by_a_crash_is_not_read_and_a_new_file_goes_on(tmp_path) -> None:
    first, second = LogprobStore(tmp_path), LogprobStore(tmp_path)
    keys = [bytes([number]) * 16 for number in range(3)]
    first.add(keys[:2], np.array([-1.0, -2.0]))
    first.close()
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(part.read_bytes()[:-1])
    second.add(keys[2:], np.array([-3.0]))
    second.close()
    second.load(second.listing())
    np.testing.assert_array_equal(second.find(keys), np.array([-1, np.nan, -3], np.float32))


def test_what_is_written_after_a_listing_is_not_known_by_it(tmp_path) -> None:
    writer = LogprobStore(tmp_path)
    writer.add([b"k" * 16], np.array([-1.0]))
    listing = writer.listing()
    assert listing == {next(iter(listing)): RECORD.itemsize}
    writer.add([b"l" * 16], np.array([-2.0]))
    writer.load(listing)
    assert len(writer) == 1
