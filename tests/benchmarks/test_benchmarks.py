"""The benchmarks: peers do the same work, the floor is the step's own products, and the scripts run from end to end."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import generate
import measure
import merged
import numpy as np
import own
import pytest
import scaling
import train_step

BENCHMARKS = Path(measure.__file__).parent
SMALL = measure.Size(V=61, C=24, layers=3, heads=2, T=7, B=3)
MODES = ("full", "lora", "last")


@pytest.fixture
def peers():
    pytest.importorskip("torch", reason="PyTorch, the peer, is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # what another library's import deprecates is not ours to mend
        import peers
    return peers


# ---- The same work -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", MODES)
def test_minitune_and_torch_compute_the_same_first_loss(mode, peers):
    ours, theirs = own.gpt(SMALL, mode), peers.torch_gpt(SMALL, mode)
    give_base_weights(peers, theirs)
    assert own.training_step(ours, SMALL)() == pytest.approx(peers.torch_step(theirs, SMALL)(), abs=1e-4)


@pytest.mark.parametrize("mode", ["full", "last"])
def test_minitune_and_torch_go_on_alike_after_three_steps(mode, peers, monkeypatch):
    for module in (own, peers):
        monkeypatch.setattr(module, "RATE", 0.01)       # far enough for a step that differs to show
    ours, theirs = own.gpt(SMALL, mode), peers.torch_gpt(SMALL, mode)
    give_base_weights(peers, theirs)
    our_step, their_step = own.training_step(ours, SMALL), peers.torch_step(theirs, SMALL)
    losses = np.array([(our_step(), their_step()) for _ in range(4)])
    assert losses[0, 0] - losses[-1, 0] > 0.1
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], 0, 1e-3)     # PyTorch lets norms and biases decay as well


@pytest.mark.parametrize("mode", MODES)
def test_hugging_face_trains_as_much_as_the_plain_model(mode, peers, monkeypatch):
    pytest.importorskip("transformers", reason="transformers, a peer, is not installed")
    pytest.importorskip("peft", reason="PEFT, a peer, is not installed")
    counts = []
    monkeypatch.setattr(peers, "stepping", lambda loss_of, parameters, *rest:
                        counts.append(sum(p.numel() for p in parameters if p.requires_grad)))
    peers.torch_step(peers.torch_gpt(SMALL, mode), SMALL)
    peers.hugging_face_step(SMALL, mode)
    assert counts[0] == counts[1]


def give_base_weights(peers, theirs):
    """minitune's weights before any adapter, in the plain model's layers or in what they wrap."""
    plain = peers.GPT(SMALL)
    peers.copy_weights(own.gpt(SMALL, "full"), plain)
    names = set(theirs.state_dict())
    wrapped = {name: re.sub(r"\.(weight|bias)$", r".base.\1", name) for name in plain.state_dict()}
    state = {name if name in names else wrapped[name]: value for name, value in plain.state_dict().items()}
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all(name[-2:] in (".A", ".B") for name in missing.missing_keys)


def test_the_merged_model_is_the_adapted_one_in_the_layers_of_the_base():
    models = {name: merged.model_of(SMALL, name) for name in merged.MODELS}
    logits = {name: merged.reading(model, SMALL)().numpy() for name, model in models.items()}
    # float32: the adapter's two products are summed apart from the base's, or before
    np.testing.assert_allclose(logits["merged"], logits["adapted"], rtol=1e-4, atol=1e-4)
    assert abs(logits["merged"] - logits["base"]).max() > 0.01
    assert models["merged"].num_parameters() == models["base"].num_parameters() < models["adapted"].num_parameters()
    assert [type(part) for part in models["merged"].modules()] == [type(part) for part in models["base"].modules()]


# ---- The floor -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", MODES)
def test_the_floor_is_the_products_that_a_step_runs(mode, monkeypatch):
    made = []

    def counted(a, b):
        made.append(2 * a.size * b.shape[-1])
        return a @ b

    for name, module in list(sys.modules.items()):
        if name.startswith("minitune.ops.") and hasattr(module, "product"):
            monkeypatch.setattr(module, "product", counted)
    own.training_step(own.gpt(SMALL, mode), SMALL, kernels=False)()
    trained = 1 if mode == "last" else SMALL.layers
    again = trained * 2 * SMALL.B * SMALL.T**2 * SMALL.C        # backward makes attention's scores anew, to save their memory
    assert sum(made) == own.flops(SMALL, mode) + again


def test_a_full_step_has_six_operations_a_weight_and_token_and_twelve_a_pair_in_attention():
    size = measure.SIZES["M"]
    N, weights = size.B * size.T, 12 * size.layers * size.C**2 + size.V * size.C
    assert own.flops(size) == 6 * N * weights + 12 * size.layers * N * size.T * size.C


@pytest.mark.parametrize("mode", MODES)
def test_the_floor_runs_every_product(mode, monkeypatch):
    run, multiply = [], np.matmul

    def counted(a, b, out):
        run.append(2 * a.size * b.shape[-1])
        return multiply(a, b, out=out)

    step = own.floor_step(SMALL, mode)
    monkeypatch.setattr(np, "matmul", counted)
    step()
    assert sum(run) == own.flops(SMALL, mode)


# ---- What the scripts share ----------------------------------------------------------------------------------------

def test_the_spread_leaves_a_tenth_out_on_either_side():
    assert measure.spread([*range(20), 1000]) == (10, 2, 18)
    assert measure.spread([7.0]) == (7.0, 7.0, 7.0)


def test_rounds_are_pooled_and_an_error_stays_one():
    facts = {"libraries_mb": 1.0, "above_import_mb": 2.0, "threads": 1, "blas": []}
    row = measure.summary([{"times_ms": [1, 2, 3], "peak_mb": 5, **facts}, {"times_ms": [4, 5], "peak_mb": 9, **facts}])
    assert (row["median_ms"], row["steps"], row["peak_mb"]) == (3, 5, 7)
    assert measure.summary([{"times_ms": [1], "peak_mb": 5, **facts}, {"error": "killed"}]) == {"error": "killed"}


def test_few_slow_steps_are_timed_and_many_quick_ones(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measure, "perf_counter", lambda: now[0])

    def taking(seconds):
        def step():
            now[0] += seconds
        return step

    assert [len(measure.time_steps(taking(seconds), 9, 10)) for seconds in (0.5, 4, 30)] == [9, 3, 1]


def test_ratios_are_to_the_same_mode_and_size():
    times = {("minitune", "full"): 8.0, ("torch", "full"): 16.0, ("floor", "full"): 4.0, ("minitune", "lora"): 6.0,
             ("torch", "lora"): 10.0}
    rows = [{"name": name, "size": "S", "mode": mode, "median_ms": ms} for (name, mode), ms in times.items()]
    rows.append({"name": "bf16", "size": "S", "mode": "full", "skipped": "no instructions"})
    train_step.compare(rows)
    keys = ("ratio_to_torch_eager", "ratio_to_own_full", "ratio_to_floor", "floor_ms")
    assert [tuple(rows[i][key] for key in keys) for i in (0, 3, 5)] == [(0.5, 1, 2, 4), (0.6, 0.75, None, None),
                                                                      (None, None, None, 4)]
    assert "no instructions" in "\n".join(train_step.tables([row | {"label": ""} for row in rows]))


def test_bf16_is_left_out_where_the_processor_imitates_it(monkeypatch):
    monkeypatch.setattr(train_step, "find_spec", lambda package: package != "jax")
    monkeypatch.setattr(train_step, "cpu_flags", lambda: {"avx2"})
    assert "no bfloat16 instructions" in train_step.reason_to_skip("bf16", False)
    assert train_step.reason_to_skip("bf16", True) is None
    assert train_step.reason_to_skip("jax", True) == "jax not installed"
    monkeypatch.setattr(train_step, "cpu_flags", lambda: {"avx512_bf16"})
    assert train_step.reason_to_skip("bf16", False) is None


def test_a_power_law_is_fitted():
    assert scaling.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


@pytest.mark.parametrize("gap, answer", [(1e-5, "but for near ties"), (0.2, "no: {'gap': 0.2}")])
def test_tokens_that_part_are_a_near_tie_or_an_error(gap, answer, monkeypatch):
    asked = []
    monkeypatch.setattr(generate, "run_child", lambda script, arm: asked.append(arm) or {"gap": gap})
    row = {"batch": 2, "tokens": [[1, 2, 3], [4, 5, 6]]}
    assert generate.agreement(row, [[1, 2, 3], [4, 9, 8]], "folder") == answer
    assert asked[0]["partings"] == [[1, [4], 9, 5]]


def test_tokens_that_are_the_same_or_missing_need_no_look(monkeypatch):
    monkeypatch.delattr(generate, "run_child")
    assert generate.agreement({"batch": 1, "tokens": [[1]]}, [[1]], "folder") == "yes"
    assert generate.agreement({"batch": 1, "error": "killed"}, [[1]], "folder") == "not known"


def test_the_gap_of_two_tokens_is_that_of_their_logits(tmp_path):
    generate.make(str(tmp_path), vars(measure.SIZES["tiny"]) | {"T": 20})
    prompts = generate.prompts_of(2, 64)
    logits = generate.minitune_model(str(tmp_path))(np.array([prompts[1] + [4]])).numpy()[0, -1]
    found = generate.gap(str(tmp_path), batch=2, partings=[[1, [4], 9, 5]])["gap"]
    assert found == pytest.approx(abs(logits[9] - logits[5]), abs=1e-6) and found > 0


def test_a_child_starts_without_inherited_kernels_and_its_memory_is_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    ballast = np.ones(25 << 20)                 # 200 MB, which a new program's ru_maxrss would begin with
    script = tmp_path / "arm.py"
    script.write_text(f"import sys, os; sys.path.insert(0, {str(BENCHMARKS)!r}); import measure\n"
                      "measure.start(None, lambda **arm: arm | {'peak': measure.peak_mb(), 'environment': dict(os.environ)})\n")
    found = measure.run_child(str(script), {"name": "one"})
    assert found["name"] == "one" and 1 < found["peak"] < 100 < ballast.nbytes / 2**20
    assert "OPENBLAS_CORETYPE" not in found["environment"] and found["environment"]["OPENBLAS_NUM_THREADS"] == "1"
    script.write_text("raise SystemExit('no such arm')")
    assert measure.run_child(str(script), {}) == {"error": "no such arm"}


# ---- From end to end -----------------------------------------------------------------------------------------------

def test_a_quick_run_measures_every_arm_of_minitune(tmp_path):
    file = tmp_path / "results.json"
    options = ["--quick", "--names", "minitune,references,floor", "--modes", "full,lora", "--json", file]
    subprocess.run([sys.executable, BENCHMARKS / "train_step.py", *options], check=True, capture_output=True,
                   env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    whole = json.loads(file.read_text(encoding="utf-8"))
    rows = whole["rows"]
    assert [(row["name"], row["mode"]) for row in rows] == [(name, mode) for mode in ("full", "lora")
                                                            for name in ("minitune", "references", "floor")]
    assert all(row["steps"] == 2 and 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"] for row in rows)
    assert all(row["ratio_to_floor"] > 0 for row in rows if row["name"] != "floor")
    assert whole["versions"]["numpy"] == np.__version__ and whole["sizes"]["tiny"]["V"] == 64


def test_base_adapted_and_merged_are_timed_in_turn(tmp_path):
    file = tmp_path / "results.json"
    subprocess.run([sys.executable, BENCHMARKS / "merged.py", "--quick", "--json", file], check=True, capture_output=True,
                   env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [(row["work"], row["name"]) for row in rows] == [(work, name) for work in merged.WORKS for name in merged.MODELS]
    assert all(row["pairs"] == merged.REPEATS and row["low"] <= row["ratio_to_base"] <= row["high"] for row in rows)
    assert {row["ratio_to_base"] for row in rows if row["name"] == "base"} == {1.0}


@pytest.mark.parametrize("where", [["--page"], ["--json"]])
def test_tiny_figures_get_into_no_page_and_no_committed_result(where, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--quick", *where])
    with pytest.raises(SystemExit):
        train_step.main()
    assert "--quick only shows that everything runs" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["train_step", "memory", "generate", "scaling"])
def test_the_page_has_a_place_for_every_script(script):
    page = measure.PAGE.read_text(encoding="utf-8")
    assert f"<!-- {script}: written by benchmarks/{script}.py -->" in page and f"<!-- end of {script} -->" in page
    assert "<!-- merged: written by benchmarks/merged.py -->" in merged.PAGE.read_text(encoding="utf-8")
