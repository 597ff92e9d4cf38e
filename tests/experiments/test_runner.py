"""The runner: nothing finished is run again, nothing finished is lost."""

import io
import json
import os
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from minitune.experiments import runner
from minitune.experiments.runner import append_line, read_lines, run, worker_pool

SPECS = [{"n": n, "seed": seed} for n in (1, 2) for seed in (0, 1)]


def work(spec):
    if spec["n"] < 0:
        raise ValueError("n is negative")
    return {"square": spec["n"] ** 2, "threads": os.environ.get("OPENBLAS_NUM_THREADS"), "process": os.getpid()}


def test_results_come_in_the_order_of_the_specs():
    assert [(row["n"], row["seed"], row["square"]) for row in run(SPECS, work)] == [(1, 0, 1), (1, 1, 1), (2, 0, 4), (2, 1, 4)]


def test_a_second_call_runs_only_what_is_missing(tmp_path):
    file = tmp_path / "runs.jsonl"
    run(SPECS[:3], work, file)
    ran = []
    rows = run(SPECS, lambda spec: ran.append(spec) or work(spec), file)
    assert ran == SPECS[3:] and len(rows) == 4 and len(read_lines(file)) == 4


def test_lines_of_other_settings_are_not_taken_for_these(tmp_path):
    file = tmp_path / "runs.jsonl"
    run([{"n": 3, "settings": "a"}], work, file)
    rows = run([{"n": 3, "settings": "b"}], work, file)
    assert [row["settings"] for row in rows] == ["b"] and len(read_lines(file)) == 2


def test_an_interruption_keeps_what_is_finished_and_the_next_call_goes_on(tmp_path):
    file = tmp_path / "runs.jsonl"

    def interrupted(spec):
        if spec == SPECS[2]:
            raise KeyboardInterrupt
        return work(spec)

    with pytest.raises(KeyboardInterrupt):
        run(SPECS, interrupted, file)
    assert len(read_lines(file)) == 2
    assert len(run(SPECS, work, file)) == 4


def test_a_line_cut_off_by_a_crash_is_dropped_and_run_again(tmp_path):
    file = tmp_path / "runs.jsonl"
    run(SPECS[:2], work, file)
    whole = file.read_text()
    file.write_text(whole + '{"n": 2, "se')
    assert len(read_lines(file)) == 2
    append_line(file, {"n": 9})
    assert [line.get("n") for line in read_lines(file)] == [1, 1, 9]
    json.loads(file.read_text().splitlines()[-1])


def test_a_whole_file_is_never_cut(tmp_path, monkeypatch):
    """Another process may have added a line since it was read."""
    file, cut = tmp_path / "runs.jsonl", []

    class Noted(io.FileIO):
        def truncate(self, size=None):
            cut.append(size)
            return super().truncate(size)

    monkeypatch.setattr(runner, "open", lambda file, mode: Noted(file, mode.replace("b", "")), raising=False)
    for n in (1, 2):
        append_line(file, {"n": n})
    file.write_bytes(file.read_bytes() + b'{"n": 3')
    append_line(file, {"n": 4})
    assert [line["n"] for line in read_lines(file)] == [1, 2, 4] and set(cut) == {0, len('{"n": 1}\n') * 2}


def test_threads_are_refused_since_they_share_random_numbers(tmp_path):
    with ThreadPoolExecutor(2) as executor, pytest.raises(ValueError, match="ThreadPoolExecutor.*random numbers.*workers=2"):
        run(SPECS, work, tmp_path / "runs.jsonl", executor)
    assert not (tmp_path / "runs.jsonl").exists()


def test_any_other_executor_makes_the_runs(tmp_path):
    """One of a user's own, as those of clusters are: it has `submit`, and its futures end."""
    class Here(Executor):
        def submit(self, function, /, *given, **named):
            future = Future()
            future.set_result(function(*given, **named))
            return future

    rows = run(SPECS, work, tmp_path / "runs.jsonl", Here())
    assert rows == run(SPECS, work) and len(read_lines(tmp_path / "runs.jsonl")) == 4


def test_a_damaged_file_is_refused_by_name(tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text("not json\n{}\n")
    with pytest.raises(ValueError, match="not JSON lines"):
        run(SPECS, work, file)


def test_an_error_names_the_run_and_keeps_the_finished_lines(tmp_path):
    with pytest.raises(RuntimeError, match=r"'n': -1.*ValueError: n is negative"):
        run([*SPECS, {"n": -1, "seed": 0}], work, tmp_path / "runs.jsonl")
    assert len(read_lines(tmp_path / "runs.jsonl")) == 4


def test_worker_processes_give_the_same_results_with_one_thread_each_and_leave_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.syspath_prepend(Path(__file__).parents[2])                  # workers find `work` by this module's name
    with worker_pool(2) as executor:
        rows = run(SPECS, work, tmp_path / "runs.jsonl", executor)
    assert [row["square"] for row in rows] == [1, 1, 4, 4]
    assert {row["threads"] for row in rows} == {"1"} and os.getpid() not in {row["process"] for row in rows}
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_one_worker_stays_in_this_process():
    with worker_pool(1) as executor:
        assert executor is None
