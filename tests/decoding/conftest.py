"""What the tests of decoding share."""

from typing import Any

import pytest

from tests.helpers.tiny_tokenizers import TOKENIZERS


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()
