"""Single flight: what several builds of one process need at the same moment is made by one of them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

_T = TypeVar("_T")
_numbers = count(1)


@dataclass(eq=False, slots=True)
class _Turn:
    """One build's place in the order in which builds began to ask."""

    number: int = 0
    taken: set[str] = field(default_factory=set)


class Flights(Generic[_T]):
    """Things by key, each made once. A build is the inside of `turn()`; where it ends badly, others make the thing.

    A build waits only for builds that began to ask before it, so that no two ever wait for each other: each
    remembers its layers only when all that it needs is checked. Where that order does not allow to wait, a thing is
    made twice.
    """

    def __init__(self) -> None:
        self._landed: dict[str, _T] = {}
        self._owners: dict[str, _Turn] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._turn: ContextVar[_Turn | None] = ContextVar("turn", default=None)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What is asked for inside, also by tasks that start there, is asked for by one build."""
        turn = _Turn()
        token = self._turn.set(turn)
        try:
            yield
        finally:
            self._turn.reset(token)
            for key in turn.taken:
                self._end(key)

    async def find(self, key: str) -> _T | None:
        """The thing as another build made it; `None`: the caller is to make it, and to say so by `land`."""
        turn = self._turn.get()
        if turn is None:
            return self._landed.get(key)
        turn.number = turn.number or next(_numbers)
        while key not in self._landed:
            owner = self._owners.get(key)
            if owner is None:
                self._owners[key], self._ended[key] = turn, asyncio.Event()
                turn.taken.add(key)
                return None
            if owner.number >= turn.number:
                return None
            await self._ended[key].wait()
        return self._landed[key]

    def land(self, key: str, thing: _T) -> None:
        """The thing is there, for everybody."""
        self._landed[key] = thing
        self._end(key)

    def _end(self, key: str) -> None:
        self._owners.pop(key, None)
        if (ended := self._ended.pop(key, None)) is not None:
            ended.set()
