"""`make demo-aws` without its year of flights: a day through the same commands, on the stores that it starts."""

import json
import os
import subprocess
import sys

from examples.nyc_flights.demo import ROOT
from examples.nyc_flights.demo_aws import kept_at, local_aws


def test_a_day_goes_through_s3_and_dynamodb_by_environment_alone(tmp_path):
    def run(*words: str) -> str:
        command = [sys.executable, "-m", "feature_assets.cli", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with local_aws() as endpoint:
        environment = {**os.environ, **kept_at(endpoint), "DAGSTER_HOME": str(tmp_path)}
        environment["FEATURE_ASSETS_PRESENT"] = "2013-02-09T00:00:00Z"
        assert "s3://features/registry" in run("apply", "--yes")
        run("materialize", "airport_weather", "--partition", "2013-02-08")
        answer = json.loads(run("get", "online", "airport_weather:*", "--entity", "origin=JFK", "--json"))
        assert json.loads(run("verify", "airport_weather", "--json"))[0]["differences"] == 0
    temp = answer[0]["features"]["temp"]
    assert (temp["status"], temp["event_timestamp"]) == ("PRESENT", "2013-02-08T23:00:00Z")
