"""Several actors on the same stores, one call at a time, in an order that a test chooses.

Every call of a store is a step. Between two steps of one actor the others may take any number of theirs, and an actor may
die before a step, as a killed process does. So a race that needs one order in a thousand is found, shrunk and repeated.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any


class Died(BaseException):
    """Stands for the end of an actor's process: nothing of ours may catch it and go on."""


class Actor:
    """One process; `work` is what it does, with its stores seen through `Actor.store`.

    `dies_at` is the number of the step that it does not live to take.
    """

    def __init__(self, name: str, work: Callable[["Actor"], object], dies_at: int | None = None) -> None:
        self.name, self.steps = name, list[str]()
        self.error: Exception | None = None
        self.finished = self.died = False
        self._work, self._dies_at = work, dies_at
        self._may_go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def store(self, store: Any, **then: Callable[[Any], object]) -> Any:
        """The store as this actor sees it; `then` is called with what the method of that name returned."""
        return _Stepping(store, self, then)

    def start(self) -> None:
        """Run up to the first step."""
        self._thread.start()
        self._waits.acquire()

    def go(self) -> None:
        """Take the step that is due, and run up to the next."""
        self._may_go.release()
        self._waits.acquire()

    def die(self) -> None:
        """Not take the step that is due."""
        self._dies_at = 0
        self.go()

    def step(self, name: str) -> None:
        self.steps.append(name)
        self._waits.release()
        self._may_go.acquire()
        if self._dies_at is not None and len(self.steps) > self._dies_at:
            self.died = True
            raise Died(name)

    def _run(self) -> None:
        try:
            self._work(self)
        except Died:
            pass
        except Exception as error:  # noqa: BLE001 (raised again by `run`)
            self.error = error
        finally:
            self.finished = True
            self._waits.release()

    def __repr__(self) -> str:
        return self.name


_ASKS_NOTHING_OF_THE_STORE = {"check_sizes"}


class _Stepping:
    def __init__(self, store: Any, actor: Actor, then: dict[str, Callable[[Any], object]]) -> None:
        self._store, self._actor, self._then = store, actor, then

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found) or name in _ASKS_NOTHING_OF_THE_STORE:
            return found

        def call(*args: Any, **options: Any) -> Any:
            self._actor.step(name)
            returned = found(*args, **options)
            if name in self._then:
                self._then[name](returned)
            return returned

        return call


def run(actors: Sequence[Actor], choose: Callable[[Sequence[Actor]], Actor]) -> list[str]:
    """Let the actors take turns until all are done or dead; `choose` says which of those that can go goes.

    Returns what happened, in order.

    Raises:
        Exception: what an actor raised, with a note of what had happened.
    """
    happened: list[str] = []
    for actor in actors:
        actor.start()
    try:
        while waiting := [actor for actor in actors if not actor.finished]:
            actor = choose(waiting) if len(waiting) > 1 else waiting[0]
            step = actor.steps[-1]
            actor.go()
            happened.append(f"{actor.name}: {step}{' †' if actor.died else ''}")
    finally:
        # Hypothesis ends an example in the middle of `choose`.
        for actor in actors:
            if not actor.finished:
                actor.die()
    for actor in actors:
        if actor.error is not None:
            actor.error.add_note("\n".join(happened))
            raise actor.error
    return happened


def until(*stops: tuple[str, str]) -> Callable[[Sequence[Actor]], Actor]:
    """A `choose`: the actor of each pair goes until the named step is due, then that of the next; at last all in turn."""
    due = list(stops)

    def choose(waiting: Sequence[Actor]) -> Actor:
        while due:
            name, step = due[0]
            actor = next((one for one in waiting if one.name == name), None)
            if actor is not None and actor.steps[-1] != step:
                return actor
            due.pop(0)
        return waiting[0]

    return choose
