"""Who uses which cores: one team of threads, for matrix products and compiled loops alike. The one place that decides it.

A BLAS library has threads of its own. Between two products they spin, some 25 ms long in OpenBLAS, on the very cores that the
loops between the products would need, and beside another busy process they wait for each other many times longer than they
compute. So minitune cuts the work itself, one part a core: BLAS computes each part in the thread that asks for it, and its own
threads sleep. As many cores are used as BLAS is allowed at that moment: OPENBLAS_NUM_THREADS and the like, or threadpoolctl.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import cache
from queue import SimpleQueue
from typing import Any

Work = Callable[[int, int], Any]        # work(start, stop): the part start .. stop - 1 of what is shared


def share(work: Work, count: int, least: int = 1) -> None:
    """Calls work(start, stop) for parts that together are 0 .. count, one a core and at the same time.

    A part has at least `least` items, so that it is worth a thread; two parts must not write to the same place. An error in
    one is raised here, once all have ended. Inside a part, `share` runs its work in the thread it is called from.
    """
    if getattr(_here, "inside", False):
        work(0, count)
        return
    with sharing() as cores:
        parts = min(cores, count // max(least, 1))
        if parts < 2:
            work(0, count)
            return
        edges = [count * i // parts for i in range(parts + 1)]
        done: SimpleQueue = SimpleQueue()
        _here.inside = True
        try:
            for queue, start, stop in zip(_workers(parts - 1), edges[1:], edges[2:], strict=False):
                queue.put((copy_context(), work, start, stop, done))        # np.errstate travels in the context
            work(0, edges[1])
        finally:                                # nobody writes any more once this returns
            _here.inside = False
            failed = [error for error in [done.get() for _ in range(parts - 1)] if error]
    if failed:
        raise failed[0]


def cores() -> int:
    """How many threads share the work."""
    with sharing() as count:
        return count


_here = threading.local()               # .inside: this thread is busy with a part
_queues: list[SimpleQueue] = []         # one a worker


def _workers(count: int) -> list[SimpleQueue]:
    while len(_queues) < count:
        queue: SimpleQueue = SimpleQueue()
        threading.Thread(target=_serve, args=(queue,), name="minitune", daemon=True).start()
        _queues.append(queue)
    return _queues[:count]


def _serve(queue: SimpleQueue) -> None:
    _here.inside = True
    while True:
        context, work, start, stop, done = queue.get()
        try:
            context.run(work, start, stop)
        except BaseException as error:          # whatever it is, the one who waits must hear of it
            done.put(error)
        else:
            done.put(None)
        del context, work, done                 # an idle worker keeps nobody's arrays alive


class _Blas:
    """The BLAS libraries that are loaded. Inside the `with` block they compute in the calling thread alone."""

    def __init__(self) -> None:
        from threadpoolctl import ThreadpoolController
        self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self.lock, self.users = threading.Lock(), 0
        self.allowed = [1]

    def __enter__(self) -> int:
        with self.lock:
            if not self.users:
                self.allowed = [library.get_num_threads() for library in self.libraries]
                self._set([1] * len(self.allowed))
            self.users += 1
            return min(self.allowed, default=1)         # one core where BLAS decides for itself, as Apple's does

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                self._set(self.allowed)

    def _set(self, threads: list[int]) -> None:
        for library, count in zip(self.libraries, threads, strict=True):
            library.set_num_threads(count)


@cache
def sharing() -> _Blas:
    """A `with` block in which BLAS computes in the calling thread alone: `share` opens one, and a loop that shares much opens
    one around it, which is cheaper. Gives the number of cores."""
    return _Blas()


def _forget_the_team() -> None:
    """In a forked process: threads do not come along, and a lock may have been held."""
    global _here
    _here = threading.local()
    _queues.clear()
    sharing.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_team)
