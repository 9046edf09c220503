"""The environment of this process, as another one would have it."""

import os
from collections.abc import Mapping


def become(environment: Mapping[str, str]) -> None:
    """Make this the environment, by touching what differs.

    Once Polars has read from an object store, a thread of it asks for a variable ten times a second; where the C library
    is moving all of them just then, for another one that was put in, it reads what is not there any more and the process dies.
    To clear and to fill the environment moves it again and again.
    """
    for name in [name for name in os.environ if name not in environment]:
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
