"""RELIABILITY of the contract: every route, all checks, thousands of cases, not one server error."""

import pytest

from tests.server.contract import fuzzed


@pytest.mark.timeout(1_800)
def test_no_request_gets_an_answer_that_the_document_does_not_have(tmp_path):
    found = fuzzed(tmp_path, examples=40, phases="examples,coverage,fuzzing,stateful")
    print(f"{found.cases} cases")
    assert found.passed, found.output
    assert found.cases >= 500, found.output
    assert "request failed" not in found.log
    assert found.pushed >= 1
