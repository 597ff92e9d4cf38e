"""How a CPU is used: one team of threads, for matrix products and compiled loops alike, and memory that is kept.

A BLAS library has threads of its own. Between two products they spin, some 25 ms long in OpenBLAS, on the very cores that the
loops between the products would need, and beside another busy process they wait for each other many times longer than they
compute. So minitune cuts the work itself, one part a core: BLAS computes each part in the thread that asks for it, and its own
threads sleep. As many cores are used as BLAS is allowed when the outermost block is entered: OPENBLAS_NUM_THREADS and the
like, or threadpoolctl.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import cache, partial
from queue import SimpleQueue
from typing import Any

import numpy as np

Work = Callable[[int, int], Any]        # work(start, stop): the part start .. stop - 1 of what is shared
PARTS = 1 << 12                         # so finely is cut what is shared together
LARGE = 1 << 19                         # bytes that take a core longer to add than to wake another


def share(work: Work, count: int, least: int = 1) -> None:
    """Calls work(start, stop) for parts that together are 0 .. count, one a core and at the same time.

    A part has at least `least` items, so that it is worth a thread; two parts must not write to the same place. An error in
    one, or Ctrl-C, is raised here once all have ended. Inside a part, `share` runs its work in the thread it is called from.
    """
    if getattr(_here, "inside", False):
        work(0, count)
        return
    with sharing() as allowed:
        parts = min(allowed, count // max(least, 1))
        if parts < 2:
            work(0, count)
            return
        edges, done = [count * i // parts for i in range(parts + 1)], SimpleQueue[BaseException | None]()
        workers, handed = [_idle_worker() for _ in range(parts - 1)], 0     # may raise; nothing is handed over yet
        errors: list[BaseException | None] = []
        _here.inside = True
        try:
            for queue, start, stop in zip(workers, edges[1:], edges[2:], strict=False):
                queue.put((copy_context(), work, start, stop, done))        # np.errstate travels in the context
                handed += 1
            work(0, edges[1])
        except BaseException as error:
            errors.append(error)
        _here.inside = False
        while handed:                           # nobody writes any more once this function has ended
            try:
                errors.append(done.get())
                handed -= 1
            except KeyboardInterrupt as error:
                errors.append(error)
    for failed in filter(None, errors):
        raise failed


def share_together(works: list[tuple[Work, int]], least: int = 1) -> None:
    """Several (work, count) that do not wait for each other: each core does its part of all of them, and is woken once.

    `least` counts PARTS-ths of the whole.
    """
    def part(start: int, stop: int) -> None:
        for work, count in works:
            work(count * start // PARTS, count * stop // PARTS)

    share(part, PARTS, least)


def cores() -> int:
    """How many threads share the work."""
    with sharing() as count:
        return count


def added(a: Any, b: Any, out: Any = None) -> Any:
    """a + b, into `out` if given; large arrays by all cores."""
    if type(a) is not np.ndarray or a.nbytes < LARGE or a.shape != b.shape or a.dtype != b.dtype:
        if out is None:
            return a + b
        out += b
        return out
    y = np.empty_like(a) if out is None else out
    share(lambda start, stop: np.add(a[start:stop], b[start:stop], out=y[start:stop]), len(a), LARGE * len(a) // a.nbytes)
    return y


# ---- Products ----------------------------------------------------------------------------------------------------

WORTH = 1 << 20     # multiplications that take a core longer than waking it,
READ = 4            # and to how many of them reading one number of a matrix compares


def multiply(a: Any, b: Any) -> Any:
    """a @ b for matrices, or stacks of equal shape: a (..., M, K), b (..., K, N) -> (..., M, N), of a's dtype.

    Of two stacks no product is cut: the cores divide the longest axis of the stack, so the result is the same on any number of
    them.
    """
    stack, longest = a.shape[:-2], max(a.shape[:-2], default=1)
    y = np.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
    if longest > 1:
        before, count = (slice(None),) * stack.index(longest), longest
        work: Work = partial(_multiply_part, a, b, y, before)
    else:
        work, count = divided(a, b, y)
    share(work, count, WORTH * count // multiplications(a, b))
    return y


def _multiply_part(a: Any, b: Any, y: Any, before: tuple[slice, ...], start: int, stop: int) -> None:
    at = (*before, slice(start, stop))
    np.matmul(a[at], b[at], out=y[at])


def divided(a: Any, b: Any, y: Any) -> tuple[Work, int]:
    """y = a @ b as (work, count) for `share`: its rows one by one or, if they are the fewer, its columns."""
    if y.shape[-2] >= y.shape[-1]:
        return lambda start, stop: np.matmul(a[..., start:stop, :], b, out=y[..., start:stop, :]), y.shape[-2]
    return lambda start, stop: np.matmul(a, b[..., start:stop], out=y[..., start:stop]), y.shape[-1]


def multiplications(a: Any, b: Any) -> int:
    """How long a @ b takes a core, in multiplications."""
    return max(1, a.size * b.shape[-1] + READ * (a.size + b.size))


@cache
def keep_large_blocks() -> None:
    """Has the C library keep freed memory for the next step instead of giving it back, which costs a fifth of a step.

    Only glibc knows these settings (mallopt); elsewhere this does nothing. Called by the trainer, never by import.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3             # malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    if libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(M_MMAP_THRESHOLD, 1 << 25):     # older ones take 32 MB
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


# ---- The team ----------------------------------------------------------------------------------------------------

_here = threading.local()               # .inside: this thread is busy with a part; .depth, .cores: of its `sharing` blocks
_idle: deque[SimpleQueue] = deque()     # of workers that wait for a part


def _idle_worker() -> SimpleQueue:
    try:
        return _idle.pop()
    except IndexError:
        queue: SimpleQueue = SimpleQueue()
        threading.Thread(target=_serve, args=(queue,), name="minitune", daemon=True).start()
        return queue


def _serve(queue: SimpleQueue) -> None:
    _here.inside = True
    while True:
        context, work, start, stop, done = queue.get()
        error = None
        try:
            context.run(work, start, stop)
        except BaseException as caught:         # whatever it is, the one who waits must hear of it
            error = caught
        del context, work                       # an idle worker keeps nobody's arrays alive
        _idle.append(queue)
        done.put(error)
        del done, error


# ---- BLAS --------------------------------------------------------------------------------------------------------

class _Blas:
    """The BLAS libraries that are loaded. Inside the `with` block `libraries` compute in the calling thread alone."""

    def __init__(self) -> None:
        from threadpoolctl import ThreadpoolController
        self.loaded = ThreadpoolController().select(user_api="blas").lib_controllers
        apart = any(_limits_threads_apart(library) for library in self.loaded)      # NumPy may be using that one
        self.libraries = [] if apart else [library for library in self.loaded if library.get_num_threads()]
        self.lock, self.users = threading.Lock(), 0
        self.allowed = [1]

    def __enter__(self) -> int:
        depth = getattr(_here, "depth", 0)
        if not depth:
            with self.lock:
                if not self.users:
                    self.allowed = [library.get_num_threads() for library in self.libraries]
                    self.set([1] * len(self.allowed))
                self.users += 1
                _here.cores = min(self.allowed, default=1)      # one where BLAS decides for itself, as Apple's does
        _here.depth = depth + 1
        return _here.cores

    def __exit__(self, *error: object) -> None:
        _here.depth -= 1
        if not _here.depth:
            with self.lock:
                self.users -= 1
                if not self.users:
                    self.set(self.allowed)

    def set(self, threads: list[int]) -> None:
        """Gives each library its number of threads."""
        for library, count in zip(self.libraries, threads, strict=True):
            free = getattr(library, "clear_controlling_thread", lambda force=False: None)
            free(force=True)                    # threadpoolctl 3.8 obeys one thread alone, and the last to leave may be another
            library.set_num_threads(count)
            free()                              # and others may limit BLAS afterwards


def _limits_threads_apart(library: Any) -> bool:
    """Whether a limit holds for the calling thread alone: OpenBLAS built with OpenMP, which so decides for itself."""
    return library.internal_api == "openblas" and getattr(library, "threading_layer", "") == "openmp"


_blas: _Blas | None = None
_making = threading.Lock()


def sharing() -> _Blas:
    """A `with` block in which BLAS computes in the calling thread alone: `share` opens one, and a loop that shares much opens
    one around it, which is cheaper. Gives the number of cores."""
    global _blas
    if _blas is None:
        with _making:
            _blas = _blas or _Blas()
    return _blas


def _forget_the_team() -> None:
    """In a forked process: threads do not come along, and a lock may have been held."""
    global _here, _blas, _making
    _here, _making = threading.local(), threading.Lock()
    _idle.clear()
    if _blas and _blas.users:
        _blas.set(_blas.allowed)
    _blas = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_team)
