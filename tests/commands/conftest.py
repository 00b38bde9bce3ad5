from pathlib import Path

import pytest

from tests.commands import tiny


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Path:
    """A directory with a tiny llama as Hugging Face directory and as .nemo, and rows for it."""
    root = tmp_path_factory.mktemp("tiny")
    tiny.make_llama(root / "hf")
    tiny.quickly("convert", root / "hf", "-o", root / "m.nemo")
    made = tiny.rows(96, seed=1)
    tiny.write_rows(root / "train.jsonl", made)
    tiny.write_rows(root / "chat.jsonl", [tiny.as_messages(row) for row in made])
    tiny.write_rows(root / "val.jsonl", tiny.rows(10, seed=2))
    return root
