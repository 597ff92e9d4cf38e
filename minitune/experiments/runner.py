"""The runner: specifications in, one JSON line a finished run out; what is in the file already is not run again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

Spec = dict[str, Any]
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class RunFailed(RuntimeError):
    """A run raised an error; the runs finished before it are kept."""


def run(specs: Sequence[Spec], work: Callable[[Spec], dict[str, Any]], file: str | Path | None = None,
        executor: Executor | None = None, progress: str | tqdm = "") -> list[dict[str, Any]]:
    """Calls `work(spec)` for every spec and returns {**spec, **result} for each, in the order of `specs`.

    With `file`, each line is appended there as soon as its run ends, and a spec whose every entry stands in a line
    already is not run: start the same call again after an interruption and it goes on. With `executor`, runs go side by
    side, each in a process that makes one at a time; `work` and `specs` must then be picklable. `progress` names a progress
    bar, or is the one of a larger whole.
    Raises RunFailed, naming the spec, where `work` raises; finished lines stay. Raises ValueError for an executor of threads:
    they share the random numbers of one process, and would take them from each other.
    """
    refuse_threads(executor)
    if not specs:
        return []
    known = {_key(line, specs[0]): line for line in read_lines(file)} if file else {}
    todo = [spec for spec in specs if _key(spec, spec) not in known]
    with _bar(progress, len(specs)) as bar:
        bar.update(len(specs) - len(todo))
        for spec, result in _finished(todo, work, executor):
            line = {**spec, **result}
            known[_key(line, spec)] = line
            if file:
                append_line(file, line)
            bar.update()
    return [known[_key(spec, spec)] for spec in specs]


def refuse_threads(executor: Executor | None) -> None:
    """Raises ValueError for an executor of threads; an experiment asks before its first hour of work."""
    if isinstance(executor, ThreadPoolExecutor):
        raise ValueError("run: the runs of a ThreadPoolExecutor would take random numbers from each other, and none could be "
                         "repeated. Give an executor of processes, such as ProcessPoolExecutor, or workers=2")


def _bar(progress: str | tqdm, runs: int) -> AbstractContextManager[tqdm]:
    """A progress bar of this name for so many runs, or the given one, which stays open."""
    return nullcontext(progress) if isinstance(progress, tqdm) else tqdm(total=runs, desc=progress, unit="run",
                                                                         disable=not progress)


def _key(line: dict[str, Any], spec: Spec) -> str:
    """The entries of `line` that a spec has, as text."""
    return json.dumps({name: line.get(name) for name in spec}, sort_keys=True)


def _finished(todo: Sequence[Spec], work: Callable, executor: Executor | None) -> Iterator[tuple[Spec, dict[str, Any]]]:
    """(spec, result) as they come; whoever stops reading cancels what has not begun."""
    if executor is None:
        for spec in todo:
            yield spec, _named(work, spec)
        return
    futures = {executor.submit(_named, work, spec): spec for spec in todo}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()


def _named(work: Callable, spec: Spec) -> dict[str, Any]:
    try:
        return work(spec)
    except Exception as error:
        raise RunFailed(f"the run {spec} failed: {type(error).__name__}: {error}") from error


def read_lines(file: str | Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file, [] where there is none; a last line cut off by a crash is left out."""
    if not Path(file).exists():
        return []
    lines = Path(file).read_text(encoding="utf-8").split("\n")
    whole = lines[:-1]                          # after the last newline stands nothing, or an unfinished line
    try:
        return [json.loads(line) for line in whole if line]
    except json.JSONDecodeError as damage:
        raise ValueError(f"{file}: not JSON lines ({damage}). Move it away to start anew") from damage


def append_line(file: str | Path, line: dict[str, Any]) -> None:
    """Appends one line and has it on disk before returning; an unfinished line before it is cut off."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab+") as out:
        out.seek(0)
        found = out.read()
        if not found.endswith(b"\n"):           # cut only then: another process may write whole lines to the same file
            out.truncate(found.rfind(b"\n") + 1)
        out.write(json.dumps(line).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor | None]:
    """Fresh worker processes with one BLAS thread each: small models run faster side by side than on many threads.

    One worker means none: the runs stay in this process. Ctrl-C reaches only this process, which then ends the others.
    """
    if workers <= 1:
        yield None
        return
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))          # read when a worker loads its BLAS
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_interrupt)
    try:
        yield pool
    except BaseException:
        for process in pool._processes.values():            # a run of minutes would otherwise be waited for
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
