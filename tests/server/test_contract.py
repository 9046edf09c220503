"""What the server does is what its OpenAPI document says. `tests/acceptance/test_contract.py` asks many times more."""

import pytest

from tests.server.contract import fuzzed


@pytest.mark.timeout(600)
def test_no_request_gets_an_answer_that_the_document_does_not_have(tmp_path):
    found = fuzzed(tmp_path, examples=6, phases="examples,fuzzing")
    assert found.passed, found.output
    assert found.cases >= 100, found.output
    assert "request failed" not in found.log
    assert found.pushed >= 1
