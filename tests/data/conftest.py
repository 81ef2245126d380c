"""What the tests of data share."""

import pytest

from tests.helpers.prepared_data import write_lines


@pytest.fixture
def source(tmp_path):
    return write_lines(tmp_path / "source", train=9, validation=3, test=2)


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "prepared"
