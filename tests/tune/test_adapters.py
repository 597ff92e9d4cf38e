"""Several adapters on one model: names, switching, sums, swaps and removals; a LoRA out of a full fine-tuning; untying."""

import copy

import numpy as np
import pytest
from small_models import LABELS, ROWS, awd_lstm, bert, gpt, llama, randomise

import minitune as mt
from minitune import models, tune
from minitune.data import Batch, ClassificationSet
from minitune.optim import AdamW

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def base(make=gpt, labels=None):
    mt.seed(0)
    model = make()
    randomise(model.parameters(), 0, 0.2)
    return (models.Classifier(model, labels) if labels else model).eval()


def adapters_of(model):
    return [p for name, p in model.named_parameters() if p.requires_grad]


def with_two(make=gpt, labels=None):
    """(the model with adapters "one" and "two", its logits with none, with one, and with two)."""
    model = base(make, labels)
    logits = [model(IDS).numpy()]
    for seed, (name, method) in enumerate((("one", tune.LoRAConfig(r=2, lora_alpha=6)),
                                           ("two", tune.LoRAConfig(r=3, target_modules=["query", "mlp.down"])))):
        tune.add_adapter(model, name, method)
        randomise(adapters_of(model), seed + 1)
        logits.append(model(IDS).numpy())
    return model, *logits


@pytest.mark.parametrize("make", [gpt, llama, bert])
def test_switching_gives_each_adapters_bits_and_the_bases(make):
    model, plain, one, two = with_two(make)
    assert tune.adapter_names(model) == ["one", "two"] and tune.active_adapter(model) == "two"
    assert np.abs(one - two).max() > 1e-2 and np.abs(one - plain).max() > 1e-2
    weights = {name: p.data.tobytes() for name, p in base(make).named_parameters()}
    for name, expected in (("one", one), (None, plain), ("two", two), ("one", one), ("one", one)):
        tune.set_adapter(model, name)
        assert tune.active_adapter(model) == name and np.array_equal(model(IDS).numpy(), expected)
    tune.set_adapter(model, None)
    assert {name: p.data.tobytes() for name, p in model.named_parameters()} == weights


def test_the_active_adapter_alone_is_a_part_of_the_model():
    """What waits is neither counted nor trained nor in a checkpoint."""
    model, *_ = with_two()
    assert not any(".A" in name and len(p) == 2 for name, p in model.named_parameters())
    two = tune.report(model).trainable
    tune.set_adapter(model, "one")
    assert tune.report(model).trainable > two and all(p.requires_grad for n, p in model.named_parameters() if n.endswith(".A"))
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".base." in n)


def test_what_apply_put_in_is_the_default_adapter_and_goes_on_training():
    model = base()
    tune.apply(model, tune.LoRAConfig(r=2))
    assert tune.adapter_names(model) == ["default"]
    tune.add_adapter(model, "other", tune.IA3Config())
    randomise(adapters_of(model), 3)
    tune.set_adapter(model, "default")
    optimizer = AdamW(adapters_of(model), lr=0.1)
    loss, = model.loss(Batch.causal([[row.tolist()] for row in IDS])).values()
    loss[0].backward()
    optimizer.step()
    trained = model(IDS).numpy()
    tune.set_adapter(model, "other")
    assert np.abs(model(IDS).numpy() - trained).max() > 1e-2
    tune.set_adapter(model, "default")
    assert np.array_equal(model(IDS).numpy(), trained)


def test_each_adapter_has_its_own_head():
    model, _, one, two = with_two(labels=["no", "yes"])
    head = model.head
    tune.set_adapter(model, "one")
    assert model.head is not head and np.array_equal(model(IDS).numpy(), one)
    assert not np.array_equal(model.head.weight.data, head.weight.data)
    tune.set_adapter(model, "two")
    assert model.head is head and np.array_equal(model(IDS).numpy(), two)


def test_a_new_adapters_head_trains_and_leaves_the_other_alone():
    model, *_ = with_two(labels=["no", "yes"])
    tune.freeze(model, "head")
    frozen = model.head
    report = tune.add_adapter(model, "three", tune.LoRAConfig(r=2))
    assert model.head.weight.requires_grad and not frozen.weight.requires_grad and str(report) == str(tune.report(model))
    assert np.array_equal(model.head.weight.data, frozen.weight.data)
    with pytest.raises(ValueError, match="matches nothing"):
        tune.add_adapter(model, "four", tune.LoRAConfig(target_modules="qery"))
    tune.set_adapter(model, "two")
    assert model.head is frozen


def test_a_copy_has_its_own_adapters():
    model, _, one, two = with_two()
    other = copy.deepcopy(model)
    tune.remove_adapter(model, "one")
    tune.set_adapter(other, "one")
    assert np.array_equal(other(IDS).numpy(), one) and np.array_equal(model(IDS).numpy(), two)


def test_a_moved_model_takes_its_waiting_adapters_along():
    model, _, one, _ = with_two()
    model.to(dtype="float64")
    tune.set_adapter(model, "one")
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    np.testing.assert_allclose(model(IDS).numpy(), one, 1e-5, 1e-5)         # float32's rounding of the first logits


def test_removing_the_active_adapter_leaves_the_base():
    model, plain, one, _ = with_two()
    tune.remove_adapter(model, "two")
    assert tune.adapter_names(model) == ["one"] and np.array_equal(model(IDS).numpy(), plain)
    tune.set_adapter(model, "one")
    assert np.array_equal(model(IDS).numpy(), one)


# ---- Sums ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("weights", [(0.7, -0.4), (1.0, 0.0)])
def test_a_weighted_sum_changes_every_weight_by_the_sum_of_changes(weights):
    model, *_ = with_two()
    changes = {}
    for name, weight in zip(("one", "two"), weights, strict=True):
        tune.set_adapter(model, name)
        for place, layer in model.named_modules():
            if hasattr(layer, "delta"):
                changes[place] = changes.get(place, 0) + weight * layer.delta()
    tune.add_weighted_adapter(model, ["one", "two"], weights, "sum")
    assert tune.active_adapter(model) == "sum" and tune.adapter_names(model) == ["one", "two", "sum"]
    layers = {place: layer for place, layer in model.named_modules() if hasattr(layer, "delta")}
    assert set(layers) == set(changes)
    for place, layer in layers.items():
        # B's float32 rounding of weight * scale: nothing of the product is cut off
        np.testing.assert_allclose(layer.delta(), changes[place], 1e-6, 1e-6 * np.abs(changes[place]).max())
    assert len(layers["blocks.0.attention.query"].A) == 2 + 3 and len(layers["blocks.0.attention.key"].A) == 2


def test_a_sum_of_one_is_that_adapter_and_of_opposites_the_base():
    model, plain, one, _ = with_two()
    tune.add_weighted_adapter(model, ["one"], [1.0], "same")
    np.testing.assert_allclose(model(IDS).numpy(), one, 1e-5, 1e-5)         # B is multiplied by its scale once more
    tune.add_weighted_adapter(model, ["one", "one"], [1.0, -1.0], "nothing")
    np.testing.assert_allclose(model(IDS).numpy(), plain, 1e-5, 1e-5)


def test_a_sum_under_heads_that_differ_needs_one_of_them():
    model, *_ = with_two(labels=["no", "yes"])
    with pytest.raises(ValueError, match="the adapters' heads differ"):
        tune.add_weighted_adapter(model, ["one", "two"], [0.5, 0.5], "sum")
    assert tune.adapter_names(model) == ["one", "two"]
    tune.add_weighted_adapter(model, ["one", "two"], [0.5, 0.5], "sum", head="one")
    here = model.head.weight.data
    tune.set_adapter(model, "one")
    assert np.array_equal(model.head.weight.data, here) and model.head.weight.data is not here


# ---- What cannot be ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("act, error", [
    (lambda m: tune.set_adapter(m, "three"), "set_adapter: the model has no adapter 'three'; it has one, two"),
    (lambda m: tune.remove_adapter(m, "three"), "remove_adapter: the model has no adapter 'three'"),
    (lambda m: tune.add_adapter(m, "one", tune.LoRAConfig()), "expected a new name, got 'one'; the model has one, two"),
    (lambda m: tune.add_adapter(m, "", tune.LoRAConfig()), "expected a new name, got ''"),
    (lambda m: tune.add_adapter(m, "three", tune.LoRAConfig(target_modules="qery")), "'qery' matches nothing"),
    (lambda m: tune.add_adapter(m, "three", tune.PiSSAConfig(r=2)), "PiSSAConfig changes the base or its positions"),
    (lambda m: tune.add_adapter(m, "three", tune.AdapterConfig(4)), "add_adapter: AdapterConfig changes the base"),
    (lambda m: tune.add_weighted_adapter(m, ["one", "six"], [1, 1], "sum"), "has no adapter 'six'"),
    (lambda m: tune.add_weighted_adapter(m, ["one", "two"], [1], "sum"), "a weight for each adapter, got 1 for 2"),
    (lambda m: tune.add_weighted_adapter(m, [], [], "sum"), "a weight for each adapter, got 0 for 0"),
    (lambda m: tune.add_weighted_adapter(m, ["one"], [1], "two"), "expected a new name, got 'two'"),
    (lambda m: tune.add_weighted_adapter(m, ["one"], [1], "sum", head="six"), "has no adapter 'six'")])
def test_errors_change_nothing(act, error):
    model, _, one, two = with_two()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=error):
        act(model)
    assert tune.adapter_names(model) == ["one", "two"] and tune.active_adapter(model) == "two"
    assert list(model.state_dict()) == before and np.array_equal(model(IDS).numpy(), two)
    tune.set_adapter(model, "one")
    assert np.array_equal(model(IDS).numpy(), one)


def test_only_lora_adapters_can_be_added():
    model = base()
    tune.add_adapter(model, "dora", tune.DoRAConfig(r=2))
    tune.add_adapter(model, "ia3", tune.IA3Config())
    with pytest.raises(ValueError, match="only LoRA adapters are sums of products, not DoRALinear, IA3Linear"):
        tune.add_weighted_adapter(model, ["dora", "ia3"], [1, 1], "sum")


def test_a_merged_adapter_cannot_be_switched_until_it_is_unmerged():
    model, _, one, two = with_two()
    certificate = tune.merge(model)
    with pytest.raises(ValueError, match="'two' are not in the model as they were. Was it merged?"):
        tune.set_adapter(model, "one")
    tune.unmerge(model, certificate)
    assert np.array_equal(model(IDS).numpy(), two)
    tune.set_adapter(model, "one")
    assert np.array_equal(model(IDS).numpy(), one)


@pytest.mark.parametrize("method", [tune.PiSSAConfig(r=2), tune.AdapterConfig(4), tune.PrefixConfig(2)])
def test_an_adapter_that_changed_the_base_stays_the_only_one(method):
    model = base()
    tune.apply(model, method)
    expected = model(IDS).numpy()
    for act in (lambda: tune.add_adapter(model, "two", tune.LoRAConfig(r=2)), lambda: tune.set_adapter(model, None)):
        with pytest.raises(ValueError, match="changed the base or its positions, so they cannot be switched"):
            act()
    assert np.array_equal(model(IDS).numpy(), expected)


def test_weights_of_the_base_that_train_beside_an_adapter_are_told():
    model, *_ = with_two()
    tune.unfreeze(model, "norm")
    with pytest.raises(ValueError, match=r"weights of the base train beside the adapter \(norm\.weight, norm\.bias\)"):
        tune.set_adapter(model, "one")


# ---- A LoRA out of a full fine-tuning --------------------------------------------------------------------------------

@pytest.mark.parametrize("make", [gpt, bert, llama])
def test_a_change_of_low_rank_is_extracted_whole(make):
    """A merged LoRA of rank 2 is a full fine-tuning of which rank 2 keeps everything and rank 1 less."""
    tuned, again, less = base(make), base(make), base(make)
    tune.apply(tuned, tune.LoRAConfig(r=2, lora_alpha=6))
    randomise(adapters_of(tuned), 4)
    expected = tuned(IDS).numpy()
    tune.merge(tuned)
    found = tune.extract_lora(tuned, again, 2)
    assert found.kept == pytest.approx(1, abs=1e-9) and not found.left_out and found.shares
    np.testing.assert_allclose(again(IDS).numpy(), expected, 1e-4, 1e-4)    # merged weights and factors are rounded to float32
    partly = tune.extract_lora(tuned, less, 1)
    assert partly.kept < 0.99 and str(partly).startswith("rank 1 keeps ")
    assert np.abs(less(IDS).numpy() - expected).max() > 10 * np.abs(again(IDS).numpy() - expected).max()


def test_the_share_is_that_of_the_squared_singular_values_and_norms_are_told():
    tuned, model = base(labels=["no", "yes"]), base(labels=["no", "yes"])
    randomise(tuned.parameters(), 5, 0.1)
    change = {name: p.data.astype(np.float64) - dict(model.named_parameters())[name].data
              for name, p in tuned.backbone.named_parameters() for name in [f"backbone.{name}"]}
    found = tune.extract_lora(tuned, model, 3)
    values = np.linalg.svd(change["backbone.blocks.0.mlp.up.weight"], compute_uv=False) ** 2
    assert found.shares["blocks.0.mlp.up"] == pytest.approx(values[:3].sum() / values.sum())
    total = sum((c**2).sum() for c in change.values())
    lost = sum(found.left_out.values())
    assert lost == pytest.approx(sum((c**2).sum() for n, c in change.items()
                                     if n.removesuffix(".weight").removeprefix("backbone.") not in found.shares) / total)
    assert 0 < found.kept < 1 - lost and "not in linear layers" in str(found)
    assert np.array_equal(model.head.weight.data, tuned.head.weight.data)
    assert tune.adapter_names(model) == ["default"]


def test_a_head_with_a_bias_is_copied_onto_one_without():
    """`finetune` leaves such a head on a GPT: what `fold` makes has a bias."""
    tuned, model = base(labels=["no", "yes"]), base(labels=["no", "yes"])
    tune.standardize(tuned, ClassificationSet(ROWS, LABELS, 12))
    randomise(tuned.parameters(), 5, 0.1)
    with pytest.raises(ValueError, match=r"the head of tuned is standardised. First: tune.fold\(tuned\)"):
        tune.extract_lora(tuned, model, 2)
    tune.fold(tuned)
    three = base(labels=["no", "yes", "perhaps"])
    head = three.head
    with pytest.raises(ValueError, match="head"):
        tune.extract_lora(tuned, three, 2)
    assert three.head is head and head.bias is None and tune.adapter_names(three) == []
    assert model.head.bias is None
    tune.extract_lora(tuned, model, 2)
    assert np.array_equal(model.head.bias.data, tuned.head.bias.data) and tuned.head.bias.data.any()


def other_lstm():
    model = base(awd_lstm)
    randomise(model.parameters(), 7)
    return model


@pytest.mark.parametrize("tuned, other, r, error", [
    (lambda: base(), lambda: base(), 2, "the two models are equal"),
    (lambda: base(llama), lambda: base(), 2, "not of one kind: they differ in "),
    (lambda: base(awd_lstm), lambda: other_lstm(), 2, "no linear layer differs"),
    (lambda: base(), lambda: base(), 0, "r must be an int of at least 1, got 0"),
    (lambda: with_two()[0], lambda: base(), 2, "tuned has adapted layers. Merge them first"),
    (lambda: base(), lambda: with_two()[0], 2, "base has adapted layers")])
def test_what_cannot_be_extracted(tuned, other, r, error):
    with pytest.raises(ValueError, match=error):
        tune.extract_lora(tuned(), other(), r)


# ---- Merged models on disk -----------------------------------------------------------------------------------------------

def test_a_merged_model_is_read_back_and_compared(tmp_path):
    model, _, _, two = with_two()
    saved = tune.save_merged(model, tmp_path, IDS)
    again = models.from_pretrained(tmp_path)
    assert saved.gap == np.abs(again(IDS).numpy() - two).max() < 1e-4 and saved.largest == np.abs(two).max()
    assert str(saved).startswith("merged 4 adapted layers; ") and "read back from" in str(saved)
    half = tune.save_merged(model, tmp_path, IDS, dtype="float16")
    assert half.certificate is None and half.gap > 10 * saved.gap


def test_a_folder_that_is_not_the_model_is_told(tmp_path, monkeypatch):
    model, *_ = with_two()
    honest = models.GPT.to_hugging_face

    def lossy(self):
        config, tensors = honest(self)
        return config, tensors | {"transformer.ln_f.weight": tensors["transformer.ln_f.weight"] * 1.5}

    monkeypatch.setattr(models.GPT, "to_hugging_face", lossy)
    with pytest.raises(RuntimeError, match=r"what was read back is not the model: norm\.weight"):
        tune.save_merged(model, tmp_path, IDS)


@pytest.mark.parametrize("make", [
    gpt, lambda: models.Llama(models.LlamaConfig(20, 12, 2, 4, 16, n_kv_head=2, n_inner=24, tied=True))])
def test_an_untied_model_computes_the_same_and_says_so_on_disk(make, tmp_path):
    model = base(make)
    before, embedding = model(IDS).numpy(), model.token_embedding.weight.data.copy()
    tune.untie(model)
    assert np.array_equal(model(IDS).numpy(), before)
    tune.apply(model, tune.LoRAConfig(r=2, target_modules=["lm_head"]))
    randomise(adapters_of(model), 6)
    expected = model(IDS).numpy()
    tune.save_merged(model, tmp_path, IDS)
    assert '"tie_word_embeddings": false' in (tmp_path / "config.json").read_text()
    again = models.from_pretrained(tmp_path)
    np.testing.assert_allclose(again(IDS).numpy(), expected, 1e-5, 1e-5)
    assert np.array_equal(again.token_embedding.weight.data, embedding)
    assert np.abs(again.lm_head.weight.data - embedding).max() > 1e-2


@pytest.mark.parametrize("make, error", [
    (bert, "a BERT is always tied here"), (lambda: models.Classifier(llama(), ["no", "yes"]), "Classifier is always tied here"),
    (llama, "not the token embedding already")])
def test_what_is_not_tied_or_always_is_raises(make, error):
    with pytest.raises(ValueError, match=error):
        tune.untie(make())


def test_a_tied_embedding_with_an_adapter_is_merged_before_it_is_untied():
    model = models.Llama(models.LlamaConfig(20, 12, 2, 4, 16, tied=True))
    tune.apply(model, tune.LoRAConfig(r=2, target_modules=["token_embedding"]))
    with pytest.raises(ValueError, match="the token embedding has an adapter. Merge it first"):
        tune.untie(model)


def test_merging_with_untie_gives_the_merged_layer_a_weight_of_its_own():
    class Tied(mt.nn.Module):
        def __init__(self):
            self.embedding, self.output = mt.nn.Embedding(20, 16), mt.nn.Linear(16, 20, bias=False)
            self.output.weight = self.embedding.weight

        def forward(self, ids):
            return self.output(self.embedding(ids))

    model = Tied()
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="output"))
    randomise([model.output.A, model.output.B])
    words, expected = model.embedding.weight.data.copy(), model(IDS).numpy()
    with pytest.raises(ValueError, match="tied to embedding.* untie=True"):
        tune.merge(model)
    certificate = tune.merge(model, IDS, untie=True)
    assert certificate.gap < 1e-5 and np.array_equal(model.embedding.weight.data, words)
    np.testing.assert_allclose(model(IDS).numpy(), expected, 1e-5, 1e-6)
    tune.unmerge(model, certificate)
    assert np.array_equal(model(IDS).numpy(), expected) and model.output.base.weight is model.embedding.weight


def test_an_adapter_put_in_after_a_merge_leaves_those_that_wait_alone():
    """The merge changed the base on which they rest: switched, they would compute something else."""
    model, *_ = with_two()
    tune.merge(model)
    tune.apply(model, tune.LoRAConfig(r=3, target_modules=["query", "mlp.down"]))      # layers at the same places as merged
    expected = model(IDS).numpy()
    with pytest.raises(ValueError, match="'two' are not in the model as they were. Was it merged?"):
        tune.set_adapter(model, "one")
    assert np.array_equal(model(IDS).numpy(), expected)


def test_a_base_that_trains_while_no_adapter_is_in_is_told():
    model, *_ = with_two()
    tune.set_adapter(model, None)
    tune.apply(model, tune.FullConfig())
    with pytest.raises(ValueError, match="weights of the base train beside the adapter"):
        tune.set_adapter(model, "one")


def test_a_new_adapter_of_a_model_in_evaluation_drops_nothing_out():
    model = base()
    tune.add_adapter(model, "one", tune.LoRAConfig(r=2, lora_dropout=0.9))
    assert not any(part.training for part in model.modules())


@pytest.mark.parametrize("make, labels", [(gpt, None), (gpt, ["no", "yes"]),
                                          (lambda: models.MaskedLanguageModel(bert()), None)],
                         ids=["no head", "a head of layers", "a head with a parameter of its own"])
def test_what_waits_follows_a_model_to_float64_and_back(make, labels):
    model, _, one, _ = with_two(make, labels)
    tune.set_adapter(model, None)
    model.to(dtype="float64")
    tune.set_adapter(model, "one")
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    tune.set_adapter(model, "two")
    model.to(dtype="float32")
    tune.set_adapter(model, "one")
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)} and np.array_equal(model(IDS).numpy(), one)


def test_adapters_keep_their_names_under_a_head():
    model, _, one, two = with_two()
    under = models.Classifier(model, ["no", "yes"])
    assert tune.adapter_names(under) == ["one", "two"] and tune.active_adapter(under) == "two"
    tune.set_adapter(under, "one")
    tune.set_adapter(model, "one")
    features = [part.features(Batch.of_ids(IDS)).numpy() for part in (under.backbone, model)]
    assert np.array_equal(*features) and np.array_equal(model(IDS).numpy(), one)
