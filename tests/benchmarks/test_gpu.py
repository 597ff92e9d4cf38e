"""The benchmarks for a GPU, without one: on the emulation they do the same work as their peers; what only a GPU has is stood in
for; and a failure is no figure."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gpu_check
import gpu_kernels
import gpu_train_step
import measure
import numpy as np
import pytest

from minitune.twins.cuda import emulation

sys.path.append(str(Path(__file__).parents[1] / "kernels"))
import standin_cupy  # noqa: E402

KERNELS = measure.ROOT / "kernels"
TINY = gpu_kernels.SHAPES["tiny"] | {"N": 64}
needs_gxx = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++, which is not installed")


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch, the peer, is not installed")


def rows_of(name, place):
    """What is measured of an operation, at the tiny shape."""
    sizes = dict(TINY)
    for found in gpu_kernels.OPERATIONS[name](place, sizes):
        for case in found.cases(place, sizes) if isinstance(found, gpu_kernels.Passes) else [found]:
            yield gpu_kernels.measure_case(case, place)


# ---- Kernels -------------------------------------------------------------------------------------------------------

@needs_gxx
@pytest.mark.parametrize("name", gpu_kernels.OPERATIONS)
def test_a_kernel_and_its_peer_compute_the_same(name, torch):
    """PyTorch rounds parameters and the sums that make their gradients to bfloat16, minitune does not: two or three roundings
    of up to 2^-8 each, of the largest number at most."""
    rows = list(rows_of(name, gpu_kernels.Place(emulated=True)))
    assert rows
    for row in rows:
        assert "torch_error" not in row, row
        assert row["by"] == "twin" and row["amount"] > 0 and row["torch_ms"] > 0 and "error" not in row
        assert row.get("difference", 0) < 3 / 256, row


@pytest.mark.parametrize("wrong", [1.02, float("nan")])
def test_a_kernel_that_differs_from_its_peer_is_an_error(wrong, torch):
    place, exact = gpu_kernels.Place(emulated=True), np.linspace(0.5, 1, 9, dtype=np.float32)
    case = gpu_kernels.Case("gelu", "N bytes", TINY, lambda: [exact * np.float32(wrong), exact], lambda: [exact, exact])
    row = gpu_kernels.measure_case(case, place)
    assert "differs from PyTorch" in row["error"] and row["torch_ms"] > 0
    case.ours = case.peer
    assert "error" not in gpu_kernels.measure_case(case, place)


def test_every_file_of_kernels_is_measured_and_on_the_page():
    stems = {file.stem for file in KERNELS.glob("*.cu")}
    measured = set(gpu_kernels.OPERATIONS) - {"gelu", "optimizer", "lora_linear"} | {"elementwise", "optimizers"}
    assert stems == measured                    # lora_linear is made of products alone
    page = measure.GPU_PAGE.read_text(encoding="utf-8")
    assert {stem for stem in stems if f"[{stem}.cu](../kernels/{stem}.cu)" in page} == stems


@pytest.mark.parametrize("work, amount", [("4 N C bytes", 4 * 64 * 128), ("4 N C + 8 N bytes", 4 * 64 * 128 + 8 * 64),
                                          ("2 N C F flops", 2 * 64 * 128 * 256)])
def test_a_formula_is_what_it_says(work, amount):
    assert gpu_kernels.Case("", work, TINY, ours=list).amount == amount


def test_pairs_that_are_not_seen_are_no_work(torch):
    place, sizes, pairs = gpu_kernels.Place(emulated=True), dict(TINY), []
    for _ in gpu_kernels.attention(place, sizes):
        pairs.append(sizes["P"])
    assert pairs == [2 * 32 * 33 // 2, 2 * 4 * 8 * 9 // 2] * 2      # two rows of 32 tokens, or of four times 8


def test_a_rate_stands_beside_the_bound_that_was_measured():
    bounds = {"bytes_a_second": 4e12, "flops_a_second": 8e14}
    row = gpu_kernels.judged({"operation": "a", "by": "twin", "work": "x bytes", "amount": 2e9, "ms": 1.0}, bounds)
    assert (row["rate"], row["percent"]) == ("2,000 GB/s", 50)
    row = gpu_kernels.judged({"operation": "a", "by": "references", "work": "x flops", "amount": 2e11, "ms": 1.0}, bounds)
    assert (row["operation"], row["rate"], row["percent"]) == ("a (references)", "200.0 TFLOP/s", 25)
    assert gpu_kernels.judged({"operation": "a", "error": "lost"}, bounds)["rate"] == "lost"


def test_after_a_process_that_dies_hangs_or_loses_its_gpu_the_next_goes_on(tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    script.write_text(f"""
import json, os, sys, time
print("a library's word")
for name, shape in json.loads(sys.argv[2])["waiting"]:
    if name == "dies": os._exit(9)
    if name == "hangs": time.sleep(60)
    row = dict(operation=name, shape=shape)
    print(json.dumps(row | dict(error="lost") if name == "lost" else row | dict(ms=1)), flush=True)
    print(json.dumps(dict(done=name)), flush=True)
    if name == "lost": sys.exit({gpu_kernels.GO_ON})
""")
    monkeypatch.setattr(gpu_kernels, "__file__", str(script))
    monkeypatch.setattr(gpu_kernels, "PATIENCE", 2)
    names = ["first", "dies", "second", "lost", "third", "hangs", "last"]
    rows = list(gpu_kernels.measured([[name, "tiny"] for name in names], emulated=False))
    assert [row["operation"] for row in rows] == names
    assert [row["operation"] for row in rows if "error" in row] == ["dies", "lost", "hangs"]


# ---- A GPU that is none --------------------------------------------------------------------------------------------

@pytest.fixture
def cupy(monkeypatch):
    """The stand-in of the kernels' tests, with the clock, the memory and the waits that benchmarks ask for."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)       # which finds no GPU here
    monkeypatch.setattr(gpu_kernels, "find_spec", lambda name: None)

    class Event:
        def record(self):
            self.at = time.perf_counter()

        def synchronize(self):
            pass

    class Hook:
        def __enter__(self):
            hooks.append(self)
            return self

        def __exit__(self, *_):
            hooks.remove(self)

    hooks: list = []
    with standin_cupy.installed() as cupy:
        ndarray = standin_cupy.ndarray
        monkeypatch.setattr(ndarray, "fill", lambda self, value: self._host.fill(value), raising=False)
        cupy.float32, cupy.int64, cupy.uint8 = np.float32, np.int64, np.uint8
        cupy.copyto = lambda target, source: np.copyto(target._host, source._host)
        cupy.RawKernel = lambda code, name: lambda grid, block, arguments: spins.append(arguments)
        spins = cupy.spins = []
        pool = SimpleNamespace(used_bytes=lambda: 1 << 20, total_bytes=lambda: 3 << 20, free_all_blocks=lambda: None)
        cupy.get_default_memory_pool = lambda: pool
        vars(cupy.cuda).update(
            Event=Event, MemoryHook=Hook, hooks=hooks, get_elapsed_time=lambda a, b: 1000 * (b.at - a.at),
            runtime=SimpleNamespace(
                deviceSynchronize=lambda: None, memGetInfo=lambda: (5 << 20, 9 << 20), driverGetVersion=lambda: 13000,
                runtimeGetVersion=lambda: 13000,
                getDeviceProperties=lambda number: {"name": b"none", "totalGlobalMem": 9 << 20}))
        yield cupy


@needs_gxx
def test_kernels_are_measured_on_arrays_of_a_gpu(cupy, monkeypatch, capsys):
    for name, value in {"COPIED": 64, "SIDE": 8}.items():
        monkeypatch.setattr(measure, name, value)
    gpu_kernels.child([["gelu", "tiny"], ["embedding", "tiny"], ["rope", "tiny"], ["optimizer", "tiny"]], emulated=False)
    bounds, *rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert set(bounds) == {"bytes_a_second", "flops_a_second"} and min(bounds.values()) > 0
    assert not [row for row in rows if "error" in row or "skipped" in row]
    names = [row["operation"] for row in rows if "operation" in row]
    assert names == ["gelu, forward", "gelu, backward", "embedding, backward", "rope, forward", "rope, backward", "adamw",
                     "clip and adamw", "clip_grad_norm"]
    assert all(len(row["times_ms"]) == 20 for row in rows if "operation" in row)
    assert len(cupy.spins) == 2 + len(names)                        # before the two bounds and before each timing


@needs_gxx
def test_a_step_is_measured_on_a_gpu_and_looks_at_it_once_in_ten_steps(cupy, monkeypatch):
    monkeypatch.setattr(gpu_train_step, "FIRST", 2)
    monkeypatch.setattr(gpu_train_step, "WARM", 0)
    monkeypatch.setattr(gpu_train_step, "time_blocks", lambda step, finish, blocks, steps: [7.0] * blocks)
    monkeypatch.setitem(measure.GPU_SIZES, "tiny", measure.Size(17, 32, 1, 1, 4, 1))
    row = gpu_train_step.measure_arm("minitune", "tiny", "full")
    assert row["losses"][1] < row["losses"][0] and row["times_ms"] == [7.0] * gpu_train_step.BLOCKS
    assert (row["peak_mb"], row["reserved_mb"], row["device_mb"]) == (1, 3, 4)
    assert len(row["reads"]) == 10 and sum(map(bool, row["reads"])) == 1
    assert row["warnings"] == [] and {"waited", "host_ms", "host_and_gpu_ms"} < set(row)


def test_what_reads_a_number_is_counted_and_put_back(cupy):
    a, own = cupy.asarray(np.ones((), np.float32)), dict(vars(standin_cupy.ndarray))
    with gpu_train_step.counted(cupy.ndarray) as reads:
        float(a), a.item(), a + a
    assert reads == {"__float__": 1, "item": 1}
    float(a)
    assert sum(reads.values()) == 2 and dict(vars(standin_cupy.ndarray)) == own


@pytest.mark.parametrize("seconds, waits", [(0.0, False), (0.3, True)])
def test_a_step_waits_where_it_takes_as_long_as_the_work_before_it(cupy, monkeypatch, seconds, waits):
    """The stand-in's GPU is busy until 0.3 s after the spin: `finish` ends then, and so does a step that waits for anything."""
    monkeypatch.setitem(measure.GPU_SIZES, "tiny", measure.Size(17, 32, 1, 1, 4, 1))
    import own
    monkeypatch.setattr(own, "large_gpt", lambda size, mode: SimpleNamespace(to=lambda *place: None))
    monkeypatch.setattr(own, "training_step", lambda model, size: lambda: cupy.spins and time.sleep(seconds))
    row = gpu_train_step.waits_of(lambda: None, lambda: cupy.spins and time.sleep(0.3 - seconds), "tiny", "full")
    assert row["waited"] is waits and not any(row["reads"])


def test_memory_counts_what_is_given_out_and_taken_back(cupy):
    def step():
        (hook,) = cupy.cuda.hooks
        for size, call in (4, hook.malloc_postprocess), (2, hook.malloc_postprocess), (4, hook.free_postprocess), \
                (3, hook.malloc_postprocess):
            call(mem_size=size << 20, device_id=0)

    assert gpu_train_step.cupy_memory(step)["peak_mb"] == 1 + 6


def test_blocks_of_steps_end_with_one_wait():
    calls = []
    times = gpu_train_step.time_blocks(lambda: calls.append("step"), lambda: calls.append("wait"), 2, 3)
    assert calls == ["step", "step", "step", "wait"] * 2 and len(times) == 2


def test_an_arm_that_takes_too_long_is_ended(tmp_path):
    script = tmp_path / "arm.py"
    script.write_text("import time; time.sleep(60)")
    assert measure.run_child(str(script), {}, limit=0.5) == {"error": "ended after 0 s without a result"}


def test_a_command_names_no_place(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/gpu_kernels.py", "--json", "/home/me/out.json", "--rounds", "1"])
    assert measure.machine()["command"] == "python benchmarks/gpu_kernels.py --json out.json --rounds 1"


def test_the_card_is_told(cupy):
    assert measure.no_gpu() is None
    assert measure.gpu() | {"gpu_versions": 0} == {"card": "none", "card_mb": 9, "driver": 13000, "runtime": 13000,
                                                   "gpu_versions": 0}


@pytest.mark.parametrize("script", [gpu_kernels, gpu_train_step, gpu_check], ids=lambda script: script.__name__)
def test_without_a_gpu_one_line_says_so(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *(["--out", str(tmp_path)] if script is gpu_check else [])])
    with pytest.raises(SystemExit, match=r"^no GPU is measured: CuPy is not installed \(.*\)$"):
        script.main()
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


# ---- Training steps ------------------------------------------------------------------------------------------------

@needs_gxx
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_all_arms_take_the_same_steps(mode, torch, monkeypatch):
    """In bfloat16: an activation is off by 2^-9 of itself, a loss of 4.2 by a few thousandths after some steps."""
    monkeypatch.setattr(gpu_train_step, "FIRST", 3)
    ours, plain = (gpu_train_step.measure_arm(name, "tiny", mode, emulated=True) for name in ("minitune", "torch"))
    steps = 1 if mode == "lora" else None       # afterwards PyTorch's one adapter for query, key and value differs from three
    np.testing.assert_allclose(ours["losses"][:steps], plain["losses"][:steps], 0, 0.005)
    assert ours["losses"][-1] < ours["losses"][0] - 0.001 and ours["warnings"] == []
    assert ours["flops"] == plain["flops"] > 0


def test_hugging_face_starts_from_the_same_weights(torch, monkeypatch):
    pytest.importorskip("transformers", reason="transformers, a peer, is not installed")
    import peers
    from own import large_gpt, training_step
    size = replace(measure.GPU_SIZES["tiny"], T=7)
    source = large_gpt(size, "full")
    theirs = peers.hugging_face_step(size, "full", source=source)()
    # Its loss leaves the last token of each row out; so does minitune's where that token is not to be predicted.
    import own
    shortened = np.concatenate([measure.tokens(size)[:, :-1], np.full((size.B, 1), -100)], 1)
    monkeypatch.setattr(own, "tokens", lambda size: shortened)
    assert training_step(source, size)() == pytest.approx(theirs, abs=1e-5)


def test_rows_stand_beside_pytorch_and_the_product():
    row = {"size": "tiny", "mode": "full", "label": "", "flops": 2e9, "low_ms": 1.0, "high_ms": 9.0}
    rows = [row | {"name": "torch", "median_ms": 8.0, "losses": [4.0, 3.0], "device_mb": 100.0},
            row | {"name": "minitune", "median_ms": 4.0, "losses": [4.0, 3.5], "device_mb": 50.0, "reads": [{}, {"item": 2}],
                   "waited": False, "host_ms": 3.0, "host_and_gpu_ms": 500.0},
            {"name": "compile", "size": "tiny", "mode": "full", "label": "", "error": "out of memory"}]
    gpu_train_step.compare(rows, {"flops_a_second": 1e12})
    ours = rows[1]
    assert (ours["ratio_to_torch"], ours["memory_to_torch"], ours["gap"], ours["percent_of_product"]) == (0.5, 0.5, 0.5, 50)
    assert ours["tokens_a_second"] == 16 / 0.004
    told = "\n".join(gpu_train_step.tables(rows))
    assert "out of memory" in told and "Of 2 steps 1 read a number from it." in told and "did not wait for the GPU" in told


def test_a_step_that_waited_fails_the_run_and_compile_comes_last(tmp_path, monkeypatch, capsys):
    ran = []

    def run_child(script, arm, limit):
        ran.append(arm["name"])
        return {"losses": [4.0], "times_ms": [8.0], "flops": 1e9, "waited": waited, "reads": [{}], "host_ms": 8.0,
                "host_and_gpu_ms": 8.0} if arm["name"] != "bounds" else {}

    monkeypatch.setattr(gpu_train_step, "run_child", run_child)
    monkeypatch.setattr(gpu_train_step, "find_spec", lambda name: True)
    monkeypatch.setattr(sys, "argv", ["it", "--quick", "--emulated", "--names", "compile,torch,minitune,hugging_face"])
    waited = False
    gpu_train_step.main()
    assert ran == ["minitune", "torch", "hugging_face", "compile"]
    waited = True
    with pytest.raises(SystemExit, match="minitune's step waited for the GPU"):
        gpu_train_step.main()


# ---- The page ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("script", [gpu_kernels, gpu_train_step, gpu_check], ids=lambda script: script.__name__)
def test_the_page_says_what_the_committed_results_say(script):
    name, lines = script.__name__, "\n".join(script.page())
    assert (f"<!-- {name}: written by benchmarks/{name}.py -->\n\n{lines}\n\n<!-- end of {name} -->"
            in measure.GPU_PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", [gpu_kernels, gpu_train_step], ids=lambda script: script.__name__)
def test_a_page_is_made_from_a_result(script, tmp_path, monkeypatch):
    row = {"operation": "gelu, forward", "shape": "tiny", "work": "4 N F bytes", "ms": 0.5, "rate": "9 GB/s",
           "name": "minitune", "size": "tiny", "mode": "full", "label": "", "median_ms": 4.0, "low_ms": 3.0, "high_ms": 5.0,
           "command": "python it"}
    result = {"card": "NVIDIA None", "python": "3.12", "command": "python it", "versions": {"numpy": "2"}, "gpu_versions": {},
              "bounds": {"bytes_a_second": 3e12, "flops_a_second": 8e14}, "rows": [row]}
    monkeypatch.setattr(script, "ROOT", tmp_path)
    gpu_kernels.write(tmp_path / "benchmarks" / "results" / f"{script.__name__}.json", result)
    told = "\n".join(script.page())
    assert "Measured on one NVIDIA None, Python 3.12, numpy 2, by `python it`." in told
    assert "| 4 N F bytes | 0.50 | 9 GB/s |" in told or "4.00 | 3.0 to 5.0" in told


def test_rows_of_other_sizes_are_kept_if_they_are_of_the_same_card_and_versions(tmp_path):
    facts = {"card": "one", "versions": {"numpy": "2"}, "gpu_versions": {}}
    gpu_kernels.write(tmp_path / "it.json", facts | {"rows": [{"size": "124M"}, {"size": "355M"}]})
    assert gpu_train_step.others(tmp_path / "it.json", {"355M"}, facts) == [{"size": "124M"}]
    assert gpu_train_step.others(tmp_path / "it.json", {"355M"}, facts | {"card": "another"}) == []
    assert gpu_train_step.others(tmp_path / "none.json", {"355M"}, facts) == gpu_train_step.others(None, set(), facts) == []


# ---- The prepared run ----------------------------------------------------------------------------------------------

def test_what_a_part_found_is_told_in_a_line(tmp_path, monkeypatch):
    gpu_kernels.write(tmp_path / "right.json", {"rows": [{"right": True, "largest": 0.1, "norm": 0.3, "most": 0.4},
                                                         {"right": False, "error": "lost"}]})
    curves = {"cpu": [5.0, 4.0], "gpu": [5.0, 4.1], "first_gap": 1e-4, "mean_gap": 0.01,
              "slope_gaps": {"a": 0.02, "b": 0.01}, "repeats": False}
    gpu_kernels.write(tmp_path / "curves.json", curves)
    found = {name: gpu_check.found_by(name, tmp_path).get("found") for name in ("right", "twice", "curves", "tests")}
    assert found["right"] == "1 of 2 right; errors at most 75 % of what rounding may cost"
    assert found["twice"] is None is found["tests"] and "by 0.010 at most in means of 25 steps" in found["curves"]
    assert "the GPU's by +0.050 on average" in found["curves"]
    assert "gradients by 2.0 %" in found["curves"] and "two runs not the same" in found["curves"]
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    assert gpu_check.page() == ["Not run yet."]
    parts = {"right": {"state": "passed", "found": found["right"]}, "curves": {"state": "failed", "why": "ended with 1"}}
    gpu_kernels.write(tmp_path / "benchmarks" / "results" / "gpu_check.json", {"card": "one", "command": "it", "parts": parts})
    assert "| right | passed | 1 of 2 right" in "\n".join(gpu_check.page()) and "| curves | ended with 1 |" in "\n".join(
        gpu_check.page())



def test_a_part_that_fails_or_runs_late_stops_no_other(tmp_path, monkeypatch, capsys):
    sign = tmp_path / "sign of life"
    alive = f"import pathlib, time\nfor _ in range(600): pathlib.Path({str(sign)!r}).touch(); time.sleep(0.1)"
    late = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {alive!r}]); time.sleep(60)"
    parts = {"tests": ["-c", "import sys; print('told'); sys.exit(3)"], "twice": ["-c", late], "curves": ["-c", "pass"]}
    monkeypatch.setattr(gpu_check, "LIMITS", {"tests": 60, "twice": 1.5, "curves": 60, "train": 0})
    monkeypatch.setattr(gpu_check, "commands", lambda out, emulated: parts | {"train": ["-c", "pass"]})
    monkeypatch.setattr(gpu_check, "LEAST", 1)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--emulated", "--out", str(tmp_path / "out")])
    monkeypatch.setattr(gpu_check.argparse.ArgumentParser, "parse_args", lambda self: SimpleNamespace(
        out=tmp_path / "out", parts="tests,twice,curves,train", seconds=100, emulated=True, page=False))
    with pytest.raises(SystemExit):
        gpu_check.main()
    found = json.loads((tmp_path / "out" / "check.json").read_text())["parts"]
    assert {name: part["state"] for name, part in found.items()} == {"tests": "failed", "twice": "failed", "curves": "passed",
                                                                     "train": "failed"}
    assert "ended with 3" in found["tests"]["why"] and "ran past" in found["twice"]["why"]
    assert "no time" in found["train"]["why"] and "told" in (tmp_path / "out" / "log.txt").read_text()
    last = sign.stat().st_mtime_ns              # what a late part started has ended with it
    time.sleep(0.5)
    assert sign.stat().st_mtime_ns == last


@needs_gxx
def test_a_kernel_that_gives_other_bits_the_second_time_is_found(tmp_path, monkeypatch):
    place, numbers = gpu_kernels.Place(emulated=True), iter((1.0, 1.0, 1.0, 1.0 + 2**-23))
    case = gpu_kernels.Case("", "N bytes", TINY, lambda: [np.full(3, next(numbers), np.float32)])
    assert gpu_check.equal(case, place) and not gpu_check.equal(case, place)
    monkeypatch.setattr(gpu_check, "KERNELS", {"gelu": gpu_kernels.gelu})
    assert gpu_check.twice(tmp_path / "twice.json", emulated=True)
    monkeypatch.setattr(gpu_check, "equal", lambda case, place: False)
    assert not gpu_check.twice(tmp_path / "twice.json", emulated=True)


@pytest.mark.parametrize("rows, state, why", [
    ([{"ms": 1.0}, {"ms": 2.0}], "cut", "cut after 2 s, 2 rows were measured"), ([], "failed", "ran past its 2 s"),
    ([{"ms": 1.0}, {"error": "lost"}], "failed", "ran past its 2 s, and before: lost"), (None, "failed", "ran past its 2 s")])
def test_what_a_benchmark_measured_counts_where_its_time_ends(tmp_path, monkeypatch, rows, state, why):
    monkeypatch.setattr(gpu_check, "LEAST", 1)
    file = tmp_path / gpu_check.BENCHMARKS["train"]
    file.write_text(json.dumps({"rows": [{"ms": 0.0}]}))            # of an earlier run
    wrote = "" if rows is None else f"import pathlib; pathlib.Path({str(file)!r}).write_text({json.dumps({'rows': rows})!r});"
    part = gpu_check.run_part("train", ["-c", f"{wrote}import time; time.sleep(60)"], tmp_path, limit=2)
    assert (part["state"], part["why"]) == (state, why)


# ---- Right in bfloat16 ---------------------------------------------------------------------------------------------

@needs_gxx
def test_every_kernel_in_bfloat16_is_judged_by_its_reference(tmp_path):
    assert gpu_check.right(tmp_path / "right.json", emulated=True)
    rows = json.loads((tmp_path / "right.json").read_text())["rows"]
    stems = {file.stem for file in KERNELS.glob("*.cu")} - {"elementwise", "optimizers"}
    assert stems | {"gelu", "gelu_erf", "add", "matmul", "lora_linear"} == {row["operation"].partition(",")[0] for row in rows}
    heads = {row["operation"] for row in rows if row["operation"].startswith("attention")}
    assert {"attention, D 64, causal", "attention, D 128, packed in fours", "attention, B 2, T 200, H 6, G 2, D 64",
            "attention, B 2, T 200, H 4, G 4, D 32"} < heads
    assert all(0 < row["most"] < 8 * gpu_kernels.ROUNDED for row in rows)


@needs_gxx
def test_arrays_of_a_gpu_are_judged_too(cupy, tmp_path, monkeypatch):
    few = {name: gpu_kernels.OPERATIONS[name] for name in ("rope", "attention", "dropout", "embedding")}
    monkeypatch.setattr(gpu_check, "SHAPES", {"N = 1,024": gpu_kernels.SHAPES["tiny"]})
    monkeypatch.setattr(gpu_check, "KERNELS", few)
    monkeypatch.setattr(gpu_check, "ATTENTION", [(1, 70, 2, 1, 32)])
    assert gpu_check.right(tmp_path / "right.json", emulated=False)
    assert gpu_check.twice(tmp_path / "twice.json", emulated=False)


@needs_gxx
@pytest.mark.parametrize("spoiled", ["one number", "a hundredth", "NaN", "the mask", "a dtype", "no gradient", "refused"])
def test_a_kernel_that_is_wrong_is_found(spoiled, tmp_path, monkeypatch):
    from minitune import backend
    fast = backend.twin("cuda", "dropout", "dropout")
    half = gpu_kernels.Place(emulated=True).bfloat16

    def spoil(a):
        a = a.astype(np.float32)
        if spoiled in ("one number", "NaN"):
            a.flat[5] = 1 if spoiled == "one number" else np.nan
        elif spoiled == "the mask":
            a.flat[abs(a.ravel()).argsort()[np.count_nonzero(a == 0)]] = 0      # the smallest that was kept
        return a if spoiled == "a dtype" else (a * np.float32(1.01 if spoiled == "a hundredth" else 1)).astype(half)

    def backward(grad, *saved, needs):
        return (None if spoiled == "no gradient" else spoil(fast.backward(grad, *saved, needs=needs)[0]),)

    monkeypatch.setattr(gpu_check, "KERNELS", {"dropout": gpu_kernels.dropout})
    monkeypatch.setattr(gpu_check, "more", lambda place, sizes: iter(()))
    assert gpu_check.right(tmp_path / "right.json", emulated=True)
    refused = fast.unsupported if spoiled != "refused" else lambda x, **settings: "not today"
    monkeypatch.setattr(backend, "twin", lambda *names: backend.Twin(fast.forward, backward, refused))
    assert not gpu_check.right(tmp_path / "right.json", emulated=True)
    assert gpu_check.twice(tmp_path / "twice.json", emulated=True) is (spoiled != "refused")


@needs_gxx
def test_curves_and_gradients_are_compared(tmp_path, monkeypatch):
    assert gpu_check.curves(tmp_path / "curves.json", emulated=True)
    found = json.loads((tmp_path / "curves.json").read_text())
    assert found["repeats"] and 0 < found["first_gap"] and 0 < max(found["slope_gaps"].values())
    for name in "FIRST_GAP", "MEAN_GAP", "SLOPE_GAP":
        with monkeypatch.context() as strict:
            strict.setattr(gpu_check, name, 0)
            runs = [(found[run], None, None) for run in ("gpu_again", "gpu", "cpu")]
            slopes = [{"weight": np.full(3, slope)} for slope in (1.01, 1.0)]
            strict.setattr(gpu_check, "trained", lambda *_, runs=runs: runs.pop())
            strict.setattr(gpu_check, "gradients", lambda *_, slopes=slopes: slopes.pop())
            assert not gpu_check.curves(tmp_path / "strict.json", emulated=True)


def test_what_is_wrong_with_a_curve_or_a_gradient_shows():
    assert gpu_check.gaps([3.0] * 50, [3.0] * 25 + [3.5] * 25)["mean_gap"] == 0.5
    assert gpu_check.gaps([3.0] * 50, [3.0] * 49 + [float("nan")])["mean_gap"] == float("inf")
    right = {"weight": np.ones(4), "none": np.full(4, 1e-6)}
    lost = {name: np.zeros(4) for name in right}
    assert gpu_check.slope_gaps(right, lost) == pytest.approx({"weight": 1, "none": 1e-3})
    assert gpu_check.slope_gaps(right, right | {"weight": np.full(4, np.nan)})["weight"] == float("inf")
