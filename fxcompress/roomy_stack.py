"""Call a function where the interpreter's stack has room.

CPython, 3.11 and later, keeps the frames of Python functions in chunks of 16 KiB and gives a chunk back to the kernel
as soon as the first frame in it returns. A loop whose callees happen to begin a chunk then maps and unmaps memory at
each call, which takes tens of times as long as the call, and which loops do so is the luck of the call depth. A frame
that states a large stack is given a chunk of its own, the least power of two that holds it, and what it leaves free
holds the frames of what it calls.
"""

import types
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_WORDS = 70_000
"""560 000 bytes of 1 MiB, none of which is touched: half a MiB is left."""


def with_room(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, called from a frame with room after it."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    roomy: Callable[P, T] = types.FunctionType(
        call.__code__.replace(co_stacksize=_WORDS), globals(), call.__name__, None, call.__closure__
    )
    return roomy
