import pytest

from nemoalign.log import PlainReporter


@pytest.fixture
def quiet() -> PlainReporter:
    return PlainReporter(quiet=True)
