"""Publishes small registries from a process of its own.

    python publisher.py FOLDER LOCATION COUNT    publishes so often, each time something else
    python publisher.py FOLDER --spawn           for each line on stdin starts a child that publishes until it is killed

A child is forked from a process that has done its imports, so that a kill hits the work and not the start. What was
acknowledged is told on stdout: "pid <pid>", "published <sequence> <digest>".
"""

import os
import signal
import sys
from itertools import count

from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import Field, ViewSpec
from feature_assets.types import Float64


def publish(folder: str, location: str, number: int, mark: str) -> None:
    view = ViewSpec(
        name=f"view_{location}",
        features=(Field("value", Float64),),
        event_timestamp="at",
        description=f"{mark} {number}",
    )
    published = RegistryStore(folder).publish(Registry.of([view]), location=location, by=location)
    # One write, so that a killed child leaves no half a line.
    os.write(1, f"published {published.sequence} {published.digest}\n".encode())


def publish_until_killed(folder: str) -> None:
    for number in count():
        publish(folder, f"location{number % 3}", number, str(os.getpid()))


if __name__ == "__main__":
    folder, location = sys.argv[1:3]
    if location != "--spawn":
        for number in range(int(sys.argv[3])):
            publish(folder, location, number, "number")
        sys.exit()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            publish_until_killed(folder)
        os.write(1, f"pid {pid}\n".encode())
