"""The contract of online stores and promise 3 on three DynamoDBs of others, at the sizes that the contract asks of all stores.

What one of them cannot do is listed by the name of the test. A test that fails beyond that fails here, and so does a list
that has become too long.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.acceptance.clouds import DYNAMODBS, KEYS, ROOT
from tests.acceptance.running import tell

TESTS = (
    "tests/online/test_dynamodb_contract.py",
    "tests/online/test_dynamodb_tables.py",
    "tests/promises/test_online_is_latest_on_dynamodb.py",
)
CANNOT = {
    "moto": {
        # It takes items of up to 405,000 bytes, which its source calls guesswork; DynamoDB takes 409,600.
        "test_the_largest_row_that_is_let_through_is_taken": 9,
        # It takes a table's new key and keeps the former.
        "test_tables_are_encrypted_with_the_key_that_the_url_says_now": 1,
    },
    # It answers BatchGetItem without ConsumedCapacity, so that what reads cost cannot be counted.
    "ministack": {
        "test_what_calls_consume_is_counted": 1,
        "test_rows_older_than_what_is_there_cost_no_writes": 1,
    },
    # It knows neither keys nor recovery, and gives no tags to a table that it makes.
    "dynalite": {
        "test_tables_are_brought_to_what_the_url_says_now": 1,
        "test_tables_are_encrypted_with_the_key_that_the_url_says_now": 1,
    },
}
"""By server the tests that fail, and how many cases of each."""


@pytest.mark.timeout(1_500)
@pytest.mark.parametrize("server", DYNAMODBS)
def test_the_contract_holds_on(server: str, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    with DYNAMODBS[server](tmp_path) as endpoint:
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *TESTS],
            cwd=ROOT,
            env={**os.environ, **KEYS, "FEATURE_ASSETS_TEST_DYNAMODB": endpoint},
            stdout=subprocess.DEVNULL,
            check=False,
        )
    (suite,) = ET.parse(report).getroot()  # noqa: S314 (written by pytest, just now)
    failed = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    found: dict[str, int] = {}
    for case in failed:
        name = case.attrib["name"].partition("[")[0]
        found[name] = found.get(name, 0) + 1
    asked, seconds = int(suite.attrib["tests"]), float(suite.attrib["time"])
    assert asked > 90
    assert found == CANNOT[server]
    tell(f"K4, I1 on {server}", passed=f"{asked - len(failed)} of {asked}", seconds=f"{seconds:.0f}")
