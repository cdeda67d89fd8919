"""Writing to the registry while requests are answered: in threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
# Writers take turns in any case. In the threads that everybody shares (six on two cores), those that wait for
# somebody who holds the registry's lock would leave none to read a file or a key.
_WRITERS = ThreadPoolExecutor(4, thread_name_prefix="write registry")


async def written(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Do something that waits for the registry's lock."""
    return await asyncio.get_running_loop().run_in_executor(
        _WRITERS, partial(copy_context().run, work, *given, **named)
    )
