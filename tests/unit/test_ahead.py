"""Items made beforehand: the same ones, never more than one, and nothing goes on after closing."""

import threading
from collections.abc import Iterator

import pytest

from dreamoving_cli.media.ahead import ahead


def test_the_items_are_the_same_in_the_same_order() -> None:
    assert list(ahead(iter(range(20)))) == list(range(20))
    assert list(ahead(iter([]))) == []
    assert list(ahead(iter([None, None]))) == [None, None]


def test_the_next_item_is_made_while_one_is_in_use_and_no_more() -> None:
    made, started = [], threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            started.release()
            yield number

    for number in ahead(items()):
        for _ in range(2 if number == 0 else 1 if number < 4 else 0):
            assert started.acquire(timeout=10)  # the next one is begun although this one is still in use
        assert made == list(range(min(number + 2, 5)))


def test_an_error_comes_out_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("disk full")

    reader = ahead(items())
    assert next(reader) == 1
    with pytest.raises(OSError, match="disk full"):
        next(reader)


def test_closing_early_leaves_no_thread_behind() -> None:
    reader = ahead(iter(range(1000)))
    next(reader)
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
