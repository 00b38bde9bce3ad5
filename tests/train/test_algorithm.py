import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.train.algorithm import load_algorithm


@pytest.mark.parametrize("name", [name for name, row in ALGORITHMS.items() if row.target])
def test_every_row_of_the_table_names_an_algorithm(name) -> None:
    row = ALGORITHMS[name]
    algorithm = load_algorithm(row.target, row.settings())
    assert "loss" in algorithm.metric_names
    assert callable(algorithm.forward)
    assert callable(algorithm.loss)
