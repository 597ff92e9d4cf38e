"""The lens gives numpy's singular values, the rank that was planted, and the paper's similarity and amplification."""

import json
from copy import deepcopy

import numpy as np
import pytest
from small_models import bert, gpt, llama

from minitune import models, nn, tune
from minitune.data import LanguageModelSet
from minitune.experiments import lens, subspace_similarity
from minitune.train import Trainer

METHODS = [tune.LoRAConfig(r=3), tune.LoRAConfig(r=3, use_rslora=True, target_modules=["attention.query", "mlp"]),
           tune.LoRAConfig(r=3, target_modules=["token_embedding", "attention.value"]), tune.PiSSAConfig(r=3)]


def shake(model, std=0.1, seed=0):
    """Adds random numbers to what trains, as training would."""
    draw = np.random.default_rng(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.data = (p.data + std * draw.standard_normal(p.shape)).astype(p.dtype)
    return model


def tuned(model, method, seed=0):
    model = deepcopy(model)
    tune.apply(model, method)
    return shake(model, seed=seed)


def orthonormal(rows, columns, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((rows, columns)))[0]


class Two(nn.Module):
    """Two linear layers of 24 and 16 channels, whose weights a test plants."""

    def __init__(self, first, second):
        self.first, self.second = nn.Linear(16, 24, bias=False), nn.Linear(24, 16, bias=False)
        self.first.weight.data, self.second.weight.data = np.asarray(first, np.float64), np.asarray(second, np.float64)


def planted(values, seed=0):
    """(W, dW) of 24 x 16, dW with these singular values."""
    U, V = orthonormal(24, len(values), seed), orthonormal(16, len(values), seed + 1)
    return np.random.default_rng(seed + 2).standard_normal((24, 16)), (U * np.array(values)) @ V.T


# ---- Ranks -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make", [gpt, bert, llama])
@pytest.mark.parametrize("method", METHODS, ids=["lora", "some layers", "embedding", "pissa"])
def test_the_change_of_a_lora_has_its_rank_as_it_is_and_merged(make, method):
    base = make()
    adapted = tuned(base, method)
    expected = {name for name, part in adapted.named_modules() if isinstance(part, tune.LoRALayer)}
    most = 2 * 3 if isinstance(method, tune.PiSSAConfig) else 3             # PiSSA: B A - B_0 A_0
    for model in (adapted, deepcopy(adapted)):
        if model is not adapted:
            tune.merge(model)
        found = lens(base, model)
        assert {name for name, change in found.changes.items() if change.rank} == expected
        assert {change.rank for name, change in found.changes.items() if name in expected} == {most}
        assert all(change.rank_90 <= change.rank for change in found.changes.values()) and not found.unmatched


def test_full_fine_tuning_changes_every_matrix_in_every_direction():
    base = gpt()
    found = lens(base, shake(deepcopy(base)))
    assert all(change.rank == min(change.weight.shape) for change in found.changes.values())
    assert set(found.changes) == {name.removesuffix(".weight") for name, p in base.named_parameters() if p.ndim == 2}


def test_a_full_fine_tune_and_a_lora_of_the_same_task():
    """Trained, not planted: the LoRA's rank shows, and the numbers of both are numpy's to 1e-5."""
    texts = LanguageModelSet(np.random.default_rng(0).integers(0, 20, (8, 12)), 12)
    base = gpt()
    for method, rank in (tune.LoRAConfig(r=2), 2), (tune.FullConfig(), 16):
        model = deepcopy(base)
        tune.apply(model, method)
        Trainer(model, texts, steps=12, lr=1e-2, batch_size=4, progress=False).fit()
        found, linear = lens(base, model), [name for name, part in base.named_modules() if isinstance(part, nn.Linear)]
        assert {found.changes[name].rank for name in linear} == {rank}
        if rank == 2:
            tune.merge(model)
        for name in linear:
            before, after = (dict(of.named_modules())[name].weight.data.astype(np.float64) for of in (base, model))
            s = np.linalg.svd(after - before, compute_uv=False)
            np.testing.assert_allclose(found.changes[name].singular_values, s, 0, 1e-5)


def test_a_model_beside_itself_has_not_changed():
    base = gpt()
    found = lens(base, base)
    assert {(c.rank, c.effective_rank, c.rank_90, c.norm, c.relative, c.amplification()) for c in found.changes.values()} == {
        (0, 0.0, 0, 0.0, 0.0, None)}
    assert found.table().count("0.00%") == len(found.changes)


@pytest.mark.parametrize("method", [tune.DoRAConfig(r=2), tune.IA3Config(), tune.QLoRAConfig(r=2), tune.AdapterConfig(4),
                                    tune.PrefixConfig(2), tune.PromptConfig(2)], ids=lambda method: type(method).__name__)
def test_adapted_layers_count_with_the_weight_that_they_compute_with(method):
    base = gpt()
    adapted = tuned(base, method)
    weights = {name: part.effective_weight().numpy() for name, part in adapted.named_modules()
               if hasattr(part, "base") and hasattr(part, "effective_weight")}
    found, before = lens(base, adapted), dict(base.named_modules())
    for name, change in found.changes.items():
        update = weights.get(name, before[name].weight.data) - before[name].weight.data
        np.testing.assert_allclose(change.norm, np.linalg.norm(update.astype(np.float64)), 1e-5, 1e-7, err_msg=name)
    new = {"AdapterConfig": "project", "PrefixConfig": "prefix", "PromptConfig": "prompt"}.get(type(method).__name__)
    assert bool(found.unmatched) == bool(new) and all(new in name for name in found.unmatched)


# ---- Numbers -----------------------------------------------------------------------------------------------------------

def test_the_numbers_are_those_of_numpys_svd():
    (W, dW), (V, dV) = planted([3, 2, 1, 0.5, 0.25]), planted([1] * 16, 5)
    found = lens(Two(W, V.T), Two(W + dW, (V + dV).T))
    for name, update, weight in (("first", dW, W), ("second", dV.T, V.T)):
        change = found.changes[name]
        s = np.linalg.svd(update, compute_uv=False)
        np.testing.assert_allclose(change.singular_values, s, 0, 1e-5)
        np.testing.assert_allclose(change.norm, np.linalg.norm(update), 1e-5)
        np.testing.assert_allclose(change.relative, np.linalg.norm(update) / np.linalg.norm(weight), 1e-5)
        np.testing.assert_allclose((change.left * s[: change.rank]) @ change.right.T, update, 0, 1e-5)
    first, second = found.changes.values()
    p = np.array([3, 2, 1, 0.5, 0.25]) / 6.75
    np.testing.assert_allclose(first.effective_rank, np.exp(-(p * np.log(p)).sum()), 1e-5)
    assert (first.rank, first.rank_90) == (5, 2)                            # 9 + 4 of 14.3125 is 90.8 %
    assert second.rank == 16 and second.rank_90 == 15 and second.effective_rank == pytest.approx(16, 1e-5)


def test_amplification_by_hand():
    """W is 0.5 in the one direction that grows by 4, and 8 in another: amplified 8 times, whatever else W holds."""
    W, dW = np.zeros((24, 16)), np.zeros((24, 16))
    W[3, 5], W[0, 0], W[7, 5], dW[3, 5] = 0.5, 8.0, 9.0, 4.0
    change = lens(Two(W, W.T), Two(W + dW, W.T)).changes["first"]
    assert change.along(1) == pytest.approx(0.5, 1e-9) and change.amplification() == pytest.approx(8, 1e-9)
    assert change.amplification(64) == change.amplification(1)              # there are no more directions
    dW[0, 0] = 3.0                                                          # two: |dW| = 5, W there is diag(0.5, 8)
    change = lens(Two(W, W.T), Two(W + dW, W.T)).changes["first"]
    assert change.amplification(1) == pytest.approx(5 / 0.5, 1e-9)
    assert change.amplification(2) == pytest.approx(5 / np.hypot(0.5, 8), 1e-9)


# ---- Similarity --------------------------------------------------------------------------------------------------------

def test_similarity_is_one_of_the_same_directions_zero_of_orthogonal_ones_and_small_of_random_ones():
    A = orthonormal(40, 8)
    assert subspace_similarity(A, A) == pytest.approx(1, 1e-9)
    turned = A @ orthonormal(8, 8, 3)                                       # the same space, by other directions
    assert subspace_similarity(A, turned)[-1, -1] == pytest.approx(1, 1e-9) != subspace_similarity(A, turned)[0, 0]
    whole = orthonormal(40, 16)
    assert subspace_similarity(whole[:, :8], whole[:, 8:]) == pytest.approx(0, abs=1e-9)
    # two random spaces of i and j of N directions: the mean of ||A^T B||^2 is i j / N, so that of phi is max(i, j) / N
    random = np.mean([subspace_similarity(orthonormal(200, 4, 2 * s), orthonormal(200, 8, 2 * s + 1)) for s in range(60)], 0)
    expected = np.maximum(*np.ix_([1, 2, 3, 4], range(1, 9))) / 200
    np.testing.assert_allclose(random, expected, 0.35)      # the mean of 60 draws, each spread about as wide as it is large


def test_two_changes_are_compared_in_what_they_read_and_in_what_they_write():
    (W, dW), U = planted([3, 2]), orthonormal(24, 2, 9)
    V = np.linalg.svd(dW)[2][:2].T
    other = (U * [2, 1]) @ V.T                                              # reads the same, writes elsewhere
    one, two = (lens(Two(W, W.T), Two(W + update, W.T)) for update in (dW, other))
    read, written = (one.similarity(two, 4, side)["first"] for side in ("right", "left"))
    assert read[:2, :2][1, 1] == pytest.approx(1, 1e-9) and written[1, 1] < 0.5
    assert np.isnan(read[2:]).all() and np.isnan(read[:, 2:]).all()        # there is no third direction
    assert np.isnan(one.similarity(two)["second"]).all()                    # which did not change


def test_what_cannot_be_compared_is_told():
    one = lens(gpt(), gpt())
    with pytest.raises(TypeError, match="expected another lens"):
        one.similarity("other")
    with pytest.raises(ValueError, match='side must be "right" or "left"'):
        one.similarity(one, side="both")
    W, _ = planted([1])
    with pytest.raises(ValueError, match="models with other weights"):
        one.similarity(lens(Two(W, W.T), Two(W, W.T)))


# ---- Models ------------------------------------------------------------------------------------------------------------

def test_models_of_other_shapes_are_refused_with_what_differs():
    with pytest.raises(ValueError, match=r"not of one shape: token_embedding \(20, 16\) and \(20, 32\)"):
        lens(gpt(), models.GPT(models.GPTConfig(20, 12, 2, 2, 32)))
    with pytest.raises(ValueError, match="layer groups up to .*blocks.1.* and .*blocks.2"):
        lens(gpt(), models.GPT(models.GPTConfig(20, 12, 3, 2, 16)))
    W, _ = planted([1])
    with pytest.raises(ValueError, match="no matrix has the same name"):
        lens(Two(W, W.T), nn.Linear(16, 24))
    with pytest.raises(TypeError, match="expected folders or models, got GPT and int"):
        lens(gpt(), 3)


def test_a_tied_weight_is_one_matrix_and_a_head_on_one_side_is_not_compared(tmp_path):
    W, dW = planted([2, 1])
    before, after = Two(W, W.T), Two(W + dW, W.T)
    for model in (before, after):
        model.third = nn.Linear(16, 24, bias=False)
        model.third.weight = model.first.weight
    assert list(lens(before, after).changes) == ["first", "second"]

    base = gpt()
    base.save_pretrained(tmp_path / "base")
    classifier = models.Classifier(base, ["no", "yes"])
    tune.apply(classifier, tune.LoRAConfig(r=2))
    found = lens(tmp_path / "base", shake(classifier))
    assert found.unmatched == ["head"] and found.changes["blocks.1.mlp.up"].rank == 2
    assert "not compared: head" in str(found)
    again = lens(classifier, shake(deepcopy(classifier), seed=1))           # both have it
    assert again.changes["head"].rank == 2 and not again.unmatched


def test_filters_are_rows_of_a_matrix():
    before, after = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
    change = lens(before, after).changes["weight"]
    update = (after.weight.data.astype(np.float64) - before.weight.data).reshape(5, 27)
    np.testing.assert_allclose(change.singular_values, np.linalg.svd(update, compute_uv=False), 1e-9)


def test_json_and_plots(tmp_path):
    pytest.importorskip("matplotlib", reason='plots need matplotlib: pip install "minitune[test]"')
    base = gpt()
    lora, full = lens(base, tuned(base, tune.LoRAConfig(r=2))), lens(base, shake(deepcopy(base)))
    assert [file.name for file in lora.plot(tmp_path, full)] == ["drift.png", "singular_values.png", "similarity.png"]
    assert [file.name for file in lora.plot(tmp_path / "alone")] == ["drift.png", "singular_values.png"]
    assert all(file.stat().st_size for file in tmp_path.rglob("*.png"))
    lora.to_json(tmp_path / "lens.json", r=2)
    written = json.loads((tmp_path / "lens.json").read_text())
    row = next(row for row in written["matrices"] if row["name"] == "blocks.0.attention.query")
    change = lora.changes["blocks.0.attention.query"]
    assert row["rank"] == 2 and row["layer"] == "blocks.0" and row["kind"] == "attention.query"
    assert row["amplification"] == change.amplification(2) and row["singular_values"] == change.singular_values.tolist()


@pytest.mark.parametrize("method", [tune.LoRAConfig(r=2, target_modules="query"),
                                    tune.LoRAConfig(r=2, target_modules="token_embedding")])
def test_a_tied_base_weight_of_an_adapted_layer_counts_once(method):
    """Query and key share one weight, of which an adapted layer is the first to be looked at."""
    base = gpt()
    for block in base.blocks:
        block.attention.key.weight = block.attention.query.weight
    before, after = deepcopy(base), tuned(base, method)
    names = {change.name for change in lens(before, before).changes.values()}
    assert "blocks.0.attention.query" in names and "blocks.0.attention.key" not in names
    assert set(lens(before, after).changes) == names and not lens(before, after).unmatched
