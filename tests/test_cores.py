"""One team of threads shares the work, whatever happens to a part of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from minitune import backend
from minitune.cores import added, cores, share, sharing


@pytest.fixture
def three_cores(monkeypatch):
    """As if BLAS were allowed three threads, on any machine."""
    monkeypatch.setattr(sharing(), "libraries", [Library(3)])


class Library:
    def __init__(self, threads):
        self.threads = threads

    def get_num_threads(self):
        return self.threads

    def set_num_threads(self, threads):
        self.threads = threads


class LoadedLibrary(Library):
    """A library as threadpoolctl tells of it."""

    def __init__(self, internal_api, threading_layer, threads):
        super().__init__(None if threads == "None" else int(threads))
        self.internal_api, self.threading_layer = internal_api, threading_layer


@pytest.mark.parametrize("count, least", [(0, 1), (1, 1), (2, 1), (7, 1), (100, 1), (100, 60), (100, 40), (5, 0)])
def test_every_item_is_worked_on_once_in_parts_of_at_least_the_least(three_cores, count, least):
    seen, parts = np.zeros(count, int), []

    def work(start, stop):
        seen[start:stop] += 1
        parts.append((start, stop))

    share(work, count, least)
    assert (seen == 1).all() and len(parts) == max(1, min(3, count // max(least, 1)))
    assert len(parts) == 1 or all(stop - start >= least for start, stop in parts)


def test_parts_run_at_the_same_time(three_cores):
    together = threading.Barrier(3, timeout=30)             # each part waits for the other two
    share(lambda start, stop: together.wait(), 3)


def test_an_error_in_any_part_is_raised_once_all_have_ended(three_cores):
    for failing in range(3):
        ended = []

        def work(start, stop, failing=failing, ended=ended):
            if start == failing:
                raise KeyError(start)
            ended.append(start)

        with pytest.raises(KeyError, match=str(failing)):
            share(work, 3)
        assert sorted(ended) == [i for i in range(3) if i != failing]
    share(lambda start, stop: None, 3)                      # and the team is still there


def test_shared_work_that_shares_again_runs_where_it_is(three_cores):
    threads = []
    share(lambda a, b: share(lambda c, d: threads.append((a, threading.get_ident())), 3), 3)
    assert len(set(threads)) == 3


def test_several_callers_at_once_each_get_their_own_work(three_cores):
    def square(n):
        out = np.zeros(n)
        for _ in range(50):
            share(lambda start, stop: np.square(np.arange(start, stop), out=out[start:stop]), n)
        return out

    with ThreadPoolExecutor(4) as pool:
        for n, out in zip(range(1, 9), pool.map(square, range(1, 9)), strict=True):
            np.testing.assert_array_equal(out, np.arange(n) ** 2.0)


def test_blas_computes_in_one_thread_inside_and_is_left_as_it_was(three_cores):
    (library,) = sharing().libraries
    inside = []
    with pytest.raises(ZeroDivisionError):
        share(lambda start, stop: inside.append(library.threads) or 1 / 0, 3)
    assert set(inside) == {1} and library.threads == 3 and cores() == 3


def test_errstate_of_the_caller_holds_in_every_part(three_cores):
    with np.errstate(divide="ignore"):
        share(lambda start, stop: np.ones(1) / np.zeros(1), 3)
    with pytest.raises(RuntimeWarning):                     # warnings are errors in these tests
        share(lambda start, stop: np.ones(1) / np.zeros(1) if start else None, 3)


def test_as_many_cores_are_used_as_blas_is_allowed():
    blas = ThreadpoolController().select(user_api="blas")
    if not blas.lib_controllers:
        pytest.skip("NumPy's BLAS on this machine cannot be limited: it shares its work out itself")
    with blas.limit(limits=1):
        assert cores() == 1


@pytest.mark.parametrize("loaded, limited, allowed", [
    (["openblas pthreads 4", "openblas pthreads 2"], [0, 1], 2),        # the fewest: nobody gets more than it was allowed
    (["openblas pthreads 4", "openblas openmp 4"], [], 1),              # each thread has limits of its own, in the second
    (["openblas openmp 4", "mkl intel 4"], [], 1),
    (["mkl intel 4", "openblas pthreads 3"], [0, 1], 3),                # MKL, with OpenMP too, has one limit for all threads
    (["openblas pthreads 4", "blis None None"], [0], 4),                # knows no number of threads
    ([], [], 1),
])
def test_of_several_blas_libraries_all_that_have_a_limit_are_limited_or_none(loaded, limited, allowed, monkeypatch):
    libraries = [LoadedLibrary(*library.split()) for library in loaded]
    monkeypatch.setattr("threadpoolctl.ThreadpoolController", lambda: SimpleNamespace(
        select=lambda user_api: SimpleNamespace(lib_controllers=libraries)))
    monkeypatch.setattr("minitune.cores._blas", None)
    before = [library.threads for library in libraries]
    assert sharing().loaded == libraries and sharing().libraries == [libraries[i] for i in limited]
    with sharing() as count:
        assert count == allowed == cores()
        assert [library.threads for library in libraries] == [1 if i in limited else n for i, n in enumerate(before)]
    assert [library.threads for library in libraries] == before


def in_a_process(code):
    """Runs code in a fresh Python, which must end well within a minute."""
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], check=True, timeout=60,
                   env={**os.environ, "OPENBLAS_NUM_THREADS": "2"})


def test_the_limit_is_put_back_whichever_thread_enters_first_and_leaves_last():
    in_a_process("""
import threading
from minitune.cores import cores, sharing
before, inside, leave = cores(), threading.Event(), threading.Event()
def other():
    with sharing():
        inside.set()
        assert leave.wait(30)
with sharing():
    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(30)
    assert {library.get_num_threads() for library in sharing().libraries} <= {1}
leave.set()
thread.join()
assert cores() == before
with sharing():
    assert {library.get_num_threads() for library in sharing().libraries} <= {1}
""")


def test_a_thread_that_cannot_be_started_is_an_error_and_nobody_waits_for_it(three_cores, monkeypatch):
    monkeypatch.setattr("minitune.cores._idle", deque())

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        share(lambda start, stop: None, 3)
    monkeypatch.undo()
    share(lambda start, stop: None, 3)


def test_ctrl_c_is_raised_once_every_part_has_ended(three_cores):
    begun, go_on, ended = threading.Barrier(4, timeout=30), threading.Event(), []

    def work(start, stop):
        if start:
            begun.wait()
            assert go_on.wait(30)
            ended.append(start)
        else:
            begun.wait()
            signal.raise_signal(signal.SIGINT)

    threading.Thread(target=lambda: (begun.wait(), time.sleep(0.05), go_on.set())).start()
    with pytest.raises(KeyboardInterrupt):
        share(work, 3)
    assert sorted(ended) == [1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system starts processes without forking")
def test_a_forked_process_makes_a_team_of_its_own_also_if_it_was_forked_while_work_was_shared():
    in_a_process("""
import os
import numpy as np
from minitune.backend import matmul
from minitune.cores import cores, sharing
a, before = np.ones((512, 512), np.float32), cores()
matmul(a, a)
for block in (sharing, lambda: open(os.devnull)):
    with block():
        child = os.fork()
        if not child:
            os._exit(0 if (matmul(a, a) == 512).all() and cores() == before else 1)
    assert os.waitpid(child, 0)[1] == 0
""")


@pytest.mark.parametrize("a, b", [((600, 300), (300, 40)), ((3, 700), (700, 900)), ((1, 500), (500, 4000)), ((1, 1), (1, 1)),
                                  ((6, 70, 90), (6, 90, 80)), ((2, 3, 40, 50), (2, 3, 50, 60)), ((0, 5), (5, 3)),
                                  ((4, 0), (0, 3)), ((2, 0, 3), (2, 3, 4))])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_shared_product_is_the_whole_product(three_cores, a, b, dtype):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(a).astype(dtype), rng.standard_normal(b).astype(dtype)
    y = backend.matmul(a, b)
    assert y.dtype == dtype
    # each sum of K products is off by at most K roundings of its largest partial sum
    bound = a.shape[-1] * np.finfo(dtype).eps * (np.abs(a).astype(float) @ np.abs(b).astype(float)) + 1e-300
    assert (np.abs(y - a.astype(float) @ b.astype(float)) <= bound).all()
    np.testing.assert_array_equal(y, backend.matmul(a, b))


@pytest.mark.parametrize("stack", [(12,), (1, 12), (2, 6), (6, 2), (1, 1, 3)])
@pytest.mark.parametrize("b_is_transposed", [False, True])
def test_a_stack_of_products_is_shared_out_along_its_longest_axis_and_none_is_cut(three_cores, stack, b_is_transposed,
                                                                                  monkeypatch):
    *outer, count = stack
    heads = np.random.default_rng(0).standard_normal((2, *outer, 120, count, 120)).astype(np.float32)
    a, b = heads.swapaxes(-2, -3)                                       # as in attention: not one block of memory
    b = b.swapaxes(-1, -2) if b_is_transposed else b
    multiply, threads = np.matmul, []

    def counted(*arrays, out):
        threads.append(threading.get_ident())
        return multiply(*arrays, out=out)

    with ThreadpoolController().select(user_api="blas").limit(limits=1):
        expected = multiply(a, b)
        monkeypatch.setattr(np, "matmul", counted)
        np.testing.assert_array_equal(backend.matmul(a, b), expected)
    assert len(threads) == len(set(threads)) == 3


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (1, 1 << 18), (513, 1025), (7, 300, 400)])
def test_added_is_plain_addition_on_any_number_of_cores(shape):
    a, b = (np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i in range(2))
    expected = a + b
    np.testing.assert_array_equal(added(a, b), expected)
    np.testing.assert_array_equal(added(a, b.astype(np.float64)), a + b.astype(np.float64))
    into = np.array(a)
    assert added(into, b, out=into) is into
    np.testing.assert_array_equal(into, expected)
