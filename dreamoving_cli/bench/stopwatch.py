"""Stopwatches put about the parts of a program from outside, for as long as a measurement lasts."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

Wrapped = Callable[..., Any]
Change = tuple[Any, str, Callable[[Any], Any]]  # owner, name, what becomes of what is there


class Stopwatch:
    """Processor seconds (of all threads) by part; a part that runs inside another is taken off that one."""

    def __init__(self, rest: str = "rest", clock: Callable[[], float] = time.process_time) -> None:
        """rest: the name for what is in no part."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._clock, self._running, self._since = clock, [rest], clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Until the block ends, time is this part's."""
        self._book()
        self._running.append(name)
        try:
            yield
        finally:
            self._book()
            self._running.pop()

    def call(self, name: str, function: Wrapped) -> Wrapped:
        """The function, on this part's time."""

        def timed(*args: Any, **values: Any) -> Any:
            with self.part(name):
                return function(*args, **values)

        return timed

    def stream(self, name: str, function: Wrapped) -> Wrapped:
        """The generator function, on this part's time whenever the next value is asked for."""

        def timed(*args: Any, **values: Any) -> Iterator[Any]:
            values_of: Iterable[Any] = function(*args, **values)
            going = iter(values_of)
            while True:
                with self.part(name):
                    try:
                        value = next(going)
                    except StopIteration:
                        return
                yield value

        return timed

    def stop(self) -> dict[str, float]:
        """All parts."""
        self._book()
        return dict(self.seconds)

    def _book(self) -> None:
        now = self._clock()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now


@contextmanager
def replaced(changes: Iterable[Change]) -> Iterator[None]:
    """Names of modules and classes, changed until the block ends."""
    with ExitStack() as stack:
        for owner, name, change in changes:
            before = getattr(owner, name)
            stack.callback(setattr, owner, name, before)
            setattr(owner, name, change(before))
        yield
