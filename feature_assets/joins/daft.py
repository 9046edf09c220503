"""Work spread by Daft over the threads of this machine, or over a Ray cluster.

What is spread are parts of a spine, each joined by the engine of `polars.py`: an as-of join of Daft's has one column of
times and no say in ties, a ttl or a created timestamp, and would shuffle whole histories for it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, Final

from feature_assets.errors import ConfigurationError, StoreUnavailable
from feature_assets.joins import Run

_SILENT: Final = {"DAFT_ANALYTICS_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
_TASK, _DONE = "task", "done"


def runner(name: str, address: str | None) -> Run:
    """What runs tasks with the engine of that name.

    Raises:
        ConfigurationError: Daft is not installed, the process uses it in the other way already, or no Ray answers.
    """
    # Nothing that Daft or Ray reports about their users leaves this machine from here.
    for variable, value in _SILENT.items():
        os.environ.setdefault(variable, value)
    try:
        daft: Any = import_module("daft")
    except ImportError as error:
        raise ConfigurationError(
            f"engine='{name}' needs Daft. Install it: pip install 'feature-assets[distributed]'"
        ) from error
    on_ray = name == "daft-ray"
    try:
        if on_ray:
            daft.set_runner_ray(address=address, noop_if_initialized=True)
        else:
            daft.set_runner_native()
    except Exception as error:  # whatever Ray or Daft's core says
        # Daft takes a way to run once, and any later choice for a mistake, the same one too.
        if daft.runners.get_or_infer_runner_type() != ("ray" if on_ray else "native"):
            raise ConfigurationError(
                f"Daft cannot run as engine='{name}'{f' at {address}' if address else ''}: {error}. A process has one way "
                "to run Daft from start to end; take the same engine as before, or begin a new process."
            ) from error

    def run(work: Callable[[str], str], tasks: Sequence[str]) -> Iterator[str]:
        call = daft.func(work, return_dtype=daft.DataType.string(), use_process=False)
        rows = daft.from_pydict({_TASK: list(tasks)})
        # A task each, and not a thread with a list of them.
        apart = rows.into_partitions(len(tasks)) if on_ray else rows.into_batches(1)
        try:
            for row in apart.select(call(daft.col(_TASK)).alias(_DONE)).iter_rows():
                yield row[_DONE]
        except GeneratorExit:
            raise
        except Exception as error:
            raise StoreUnavailable(f"The work that engine='{name}' spread did not come to its end: {error}") from error

    return run
