"""From the start of the server's process to its first answer with features, against FastAPI by hand doing the same read.

    python -m benchmarks.server_start [repeats]

Both are new processes, one after the other; the first answers are compared. The mark: at most 2.5 times the limit. The
limit checks no token, knows one view by heart and validates its request with pydantic, as FastAPI does by itself.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.load import processor_seconds
from benchmarks.timing import as_installed

MARK = 2.5
PATIENCE_SECONDS = 120


class Start(NamedTuple):
    """Wall seconds until the first answer, seconds of the processor until then, and the answer."""

    seconds: float
    processor: float
    answer: Any


def serve_ours(file: str, port: int) -> None:
    from feature_assets.config import Settings
    from feature_assets.server.process import run

    run(Settings.load(file), port=port)


def serve_limit(path: str, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from pydantic import BaseModel

    from benchmarks.http_limit import limit_app

    class Question(BaseModel):
        features: list[str]
        entities: dict[str, list[int]]
        full_feature_names: bool = False

    app, answer = FastAPI(openapi_url=None), limit_app(path)

    @app.post("/get-online-features")
    async def get_online_features(asked: Question, request: Request) -> Response:
        sent: list[dict[str, Any]] = []

        async def keep(message: dict[str, Any]) -> None:
            sent.append(message)

        body = await request.body()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        await answer({"type": "http", "method": "POST"}, receive, keep)
        return Response(sent[-1]["body"], media_type="application/json")

    uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False)


def started(which: str, place: Path, body: bytes, token: str) -> Start:
    from benchmarks.http import asked

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    command = [sys.executable, "-m", "benchmarks.server_start", which, str(place), str(port)]
    begun = time.perf_counter()
    with (place.parent / f"{which}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=as_installed())
    try:
        while True:
            try:
                answer = asked(f"http://127.0.0.1:{port}", body, headers)
                return Start(time.perf_counter() - begun, processor_seconds(process.pid), answer)
            except OSError:
                if process.poll() is not None or time.perf_counter() - begun > PATIENCE_SECONDS:
                    raise
                time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def compare(file: Path, token: str, repeats: int) -> None:
    from benchmarks.http import question

    body = question(1, 1)
    places = {"ours": file, "limit": file.parent / "online.db"}
    starts: dict[str, list[Start]] = {which: [] for which in places}
    # Once before, which compiles what is not compiled yet.
    for which, place in places.items():
        started(which, place, body, token)
    for turn in range(repeats):
        for which in list(places) if turn % 2 == 0 else list(places)[::-1]:
            starts[which].append(started(which, places[which], body, token))
    answers = {json.dumps(one.answer, sort_keys=True) for each in starts.values() for one in each}
    assert len(answers) == 1, "the first answers differ"
    ratio = median(one.seconds for one in starts["ours"]) / median(one.seconds for one in starts["limit"])
    work = median(one.processor for one in starts["ours"]) / median(one.processor for one in starts["limit"])
    verdict = "within" if ratio <= MARK else "OVER"
    print(
        f"\nserver start to first answer, 1 row × 10 features"
        f"  [{verdict} the mark: {ratio:.2f} of {MARK:g}; by processor time {work:.2f}]"
    )
    print(f"  {'':6}  {'min s':>7}  {'median s':>8}  {'max s':>7}  {'cpu s':>6}")
    for which, each in starts.items():
        seconds = [one.seconds for one in each]
        processor = median(one.processor for one in each)
        print(f"  {which:6}  {min(seconds):7.2f}  {median(seconds):8.2f}  {max(seconds):7.2f}  {processor:6.2f}")


def main() -> None:
    if sys.argv[1:2] == ["ours"]:
        serve_ours(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["limit"]:
        serve_limit(sys.argv[2], int(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
            # Here, for the servers that are measured do not need what it loads.
            from benchmarks.http import prepare
            from feature_assets.config import Settings
            from feature_assets.server.issuer import Issuer

            file = prepare(Path(name))
            settings = Settings.load(file)
            token = Issuer.open(settings.place(settings.secrets)).token("benchmark", ["features:read"], 3_600)
            compare(file, token, int(sys.argv[1]) if len(sys.argv) > 1 else 5)


if __name__ == "__main__":
    main()
