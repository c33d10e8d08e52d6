"""One item of an iterator made beforehand, in a thread: frames are encoded while the next are decoded."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
END: Any = object()


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items in the same order; while one is in use, the next is being made.

    Whatever making one raises comes out where it would have been. Closing waits for the one being made.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(next, items, END)
        while (item := coming.result()) is not END:
            coming = thread.submit(next, items, END)
            yield item
