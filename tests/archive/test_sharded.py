from __future__ import annotations

from pathlib import Path

import pytest

from nemoalign.archive.files import open_container
from nemoalign.archive.sharded import open_sharded
from nemoalign.errors import ContentError
from tests.archive.makers import FIXTURES


@pytest.mark.parametrize(
    ("archive", "backend"), [("llama.nemo", "torch_dist"), ("llama_tp1_zarr.nemo", "zarr")]
)
def test_the_backend_is_read_from_the_checkpoint(archive: str, backend: str) -> None:
    store = open_sharded(open_container(FIXTURES / archive).under("model_weights"))
    assert store.backend == backend
    assert store.tensors["model.output_layer.weight"].shape == (512, 64)


def test_a_backend_nobody_wrote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "hdf5"}')
    with pytest.raises(ContentError, match="'hdf5'; only torch_dist and zarr"):
        open_sharded(open_container(tmp_path))
