"""save_adapter and load_adapter: every method comes back, and what does not belong together is told before anything changes."""

import copy
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_models import awd_lstm, bert, gpt, llama, randomise

import minitune as mt
from minitune import models, tune
from minitune.data import Batch, LanguageModelSet, Tokenizer
from minitune.train import Trainer
from minitune.train.checkpoint import save_checkpoint

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
LABELS = ["no", "yes"]


def base(make=gpt, labels=LABELS, pooling=None, seed=0):
    mt.seed(0)
    model = make()
    randomise(model.parameters(), seed, 0.2)
    model = models.Classifier(model, labels, pooling) if labels else model
    return model.eval()


def tuned(method, make=gpt, **settings):
    """A model of which what trains has other numbers than at first."""
    model = base(make, **settings)
    tune.apply(model, method)
    randomise([p for p in model.parameters() if p.requires_grad], 1)
    return model


def state(model):
    return {name: (p.data.tobytes(), p.requires_grad) for name, p in model.named_parameters()}


# ---- What PEFT cannot hold ---------------------------------------------------------------------------------------------

OWN = {
    "Houlsby": (tune.AdapterConfig(4), {}, "PEFT has no adapter for Houlsby"),
    "BitFit": (tune.BitFitConfig(), {}, "PEFT has no adapter for weights trained in full"),
    "top layers": (tune.TopLayersConfig(1), {}, "weights trained in full"),
    "head only": (tune.FreezeConfig(), {}, "weights trained in full"),
    "four bits": (tune.QLoRAConfig(r=2), {}, "PEFT's folder does not say that the base is in four bits"),
    "prompt read by BERT's classifier": (tune.PromptConfig(3), {"make": bert}, "the first position"),
    "prefix under a head": (tune.PrefixConfig(3), {}, "no prefix for models under this head"),
    "mean pooling": (tune.LoRAConfig(r=2), {"pooling": "mean"}, "no class for this head"),
    "a model of our own": (tune.BitFitConfig(), {"make": awd_lstm}, "no awd_lstm model"),
}


@pytest.mark.parametrize("kind", OWN)
def test_what_peft_cannot_hold_comes_back_from_minitunes_form(kind, tmp_path):
    method, settings, reason = OWN[kind]
    model = tuned(method, **settings)
    saved = tune.save_adapter(model, tmp_path)
    assert reason in saved.reason and str(saved).endswith(f"in minitune's form, for {saved.reason}")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "MINITUNE"
    again = base(**settings)
    report = tune.load_adapter(again, tmp_path)
    assert np.array_equal(again(IDS).numpy(), model(IDS).numpy())
    assert str(report) == str(tune.report(model)) and list(again.state_dict()) == list(model.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_peft_refuses_minitunes_form(tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    tune.save_adapter(tuned(tune.AdapterConfig(4)), tmp_path)
    with pytest.raises((KeyError, ValueError)):
        peft.PeftConfig.from_pretrained(str(tmp_path))


def test_weights_trained_beside_an_adapter_are_saved_too(tmp_path):
    """A whole norm is one of PEFT's modules_to_save; a bias inside an adapted layer has no place there."""
    model = tuned(tune.LoRAConfig(r=2))
    tune.unfreeze(model, "backbone.norm")
    randomise(model.backbone.norm.parameters(), 2)
    assert tune.save_adapter(model, tmp_path / "norm").reason == ""
    config = json.loads((tmp_path / "norm" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["score", "transformer.ln_f"]
    tune.unfreeze(model, "blocks.0.mlp.up.base.bias")
    randomise([model.backbone.blocks[0].mlp.up.base.bias], 3)
    assert "blocks.0.mlp.up.bias is trained alone" in tune.save_adapter(model, tmp_path / "bias").reason
    for name in "norm", "bias":
        again = base()
        tune.load_adapter(again, tmp_path / name)
        trained = {n for n, p in again.named_parameters() if p.requires_grad}
        assert {"backbone.norm.weight", "backbone.norm.bias"} < trained
        if name == "bias":
            assert np.array_equal(again(IDS).numpy(), model(IDS).numpy())


def test_lora_on_a_tied_embedding_a_convolution_and_unequal_ranks(tmp_path):
    model = tuned(tune.LoRAConfig(r=2, target_modules=["token_embedding", "query"]), labels=None)
    tune.save_adapter(model, tmp_path / "tied")
    tensors = load_file(tmp_path / "tied" / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in tensors if "lm_head" in name} == {"lora_A", "lora_B"}
    again = base(labels=None)
    tune.load_adapter(again, tmp_path / "tied")
    np.testing.assert_allclose(again(IDS).numpy(), model(IDS).numpy(), 1e-6, 1e-6)

    def vit():
        return models.ViT(models.ViTConfig(8, 4, 2, 2, 8))

    image = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    model = tuned(tune.LoRAConfig(r=2, target_modules=["patch_embedding", "query"]), vit, pooling="first")
    assert tune.save_adapter(model, tmp_path / "image").reason == ""
    again = base(vit, pooling="first")
    tune.load_adapter(again, tmp_path / "image")
    assert np.array_equal(again(image).numpy(), model(image).numpy())


def test_only_what_was_trained_is_in_the_file_and_the_head_always(tmp_path):
    model = tuned(tune.LoRAConfig(r=2, target_modules=["mlp.down"]))
    for p in model.head.parameters():
        p.requires_grad = False                 # a new head belongs to the adapter all the same
    saved = tune.save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    factors = {f"base_model.model.transformer.h.{i}.mlp.c_proj.lora_{factor}.weight" for i in range(2) for factor in "AB"}
    assert set(tensors) == factors | {"base_model.model.score.weight"}
    assert saved.parameters == sum(a.size for a in tensors.values()) == 2 * 2 * (16 + 64) + 2 * 16
    assert saved.nbytes == 4 * saved.parameters
    readme = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in readme and "Labels: no, yes." in readme and "a GPT of " in readme


# ---- Several, by name --------------------------------------------------------------------------------------------------

def test_adapters_are_loaded_beside_each_other_swapped_and_kept(tmp_path):
    kinds = {"one": tune.LoRAConfig(r=2), "two": tune.DoRAConfig(r=3, target_modules=["value"]), "three": tune.IA3Config()}
    expected = {}
    for seed, (name, method) in enumerate(kinds.items()):
        model = tuned(method)
        randomise([p for p in model.parameters() if p.requires_grad], seed)
        tune.save_adapter(model, tmp_path / name)
        expected[name] = model(IDS).numpy()
    model = base()
    for name in kinds:
        tune.load_adapter(model, tmp_path / name, name)
        assert np.array_equal(model(IDS).numpy(), expected[name])
    assert tune.adapter_names(model) == list(kinds)
    for name in "two", "one", "three":
        tune.set_adapter(model, name)
        assert np.array_equal(model(IDS).numpy(), expected[name])
    with pytest.raises(ValueError, match="has an adapter 'one' already. Give another name, or swap=True"):
        tune.load_adapter(model, tmp_path / "two", "one")
    tune.load_adapter(model, tmp_path / "two", "one", swap=True)        # a hot swap: another rank, other layers
    assert tune.active_adapter(model) == "one" and np.array_equal(model(IDS).numpy(), expected["two"])
    with pytest.raises(ValueError, match="there is no adapter 'four' to swap; there are one, two, three"):
        tune.load_adapter(model, tmp_path / "two", "four", swap=True)
    tune.set_adapter(model, "three")
    tune.save_adapter(model, tmp_path / "again")                        # the active one alone
    other = base()
    tune.load_adapter(other, tmp_path / "again")
    assert np.array_equal(other(IDS).numpy(), expected["three"])


@pytest.mark.parametrize("method", [tune.AdapterConfig(4), tune.PromptConfig(2), tune.TopLayersConfig(1),
                                    tune.QLoRAConfig(r=2)])
def test_what_changes_the_base_is_not_loaded_beside_others(method, tmp_path):
    tune.save_adapter(tuned(method), tmp_path)
    model = tuned(tune.LoRAConfig(r=2))
    before = state(model)
    with pytest.raises(ValueError, match="this one changes the base itself .* Load it into a model without adapters"):
        tune.load_adapter(model, tmp_path, "two")
    assert state(model) == before and tune.adapter_names(model) == ["default"]


def test_an_adapter_of_a_language_model_is_put_under_a_head_that_is_kept(tmp_path):
    tune.save_adapter(tuned(tune.LoRAConfig(r=2), labels=None), tmp_path)
    model = base()
    head = model.head.weight.data.copy()
    with pytest.raises(ValueError, match=r"holds no head\.weight, and the model's own may be random"):
        tune.load_adapter(model, tmp_path)
    tune.load_adapter(model, tmp_path, keep_head=True)
    assert np.array_equal(model.head.weight.data, head) and tune.active_adapter(model) == "default"


def test_training_goes_on_from_a_loaded_adapter(tmp_path):
    tune.save_adapter(tuned(tune.LoRAConfig(r=2)), tmp_path)
    model = base()
    report = tune.load_adapter(model, tmp_path)
    assert report.trainable == tune.report(tuned(tune.LoRAConfig(r=2))).trainable
    (loss, _, _), = model.loss(Batch.causal([[row.tolist()] for row in IDS], [0, 1])).values()
    loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


# ---- What does not belong together -------------------------------------------------------------------------------------

def with_tokenizer(model, text):
    model.tokenizer = Tokenizer.train([text] * 9, 300)
    return model




def shallow():
    """The same base less its last block."""
    model = base()
    del model.backbone.blocks[-1]
    return model


@pytest.mark.parametrize("make, error", [
    (lambda: base(seed=5), r"on another base: a GPT of [\d,]+ numbers, 2 blocks, 16 channels, called the/base\. .* differ"),
    (lambda: base(llama), "trained on another base: .* The model here is a Llama of "),
    (lambda: shallow(), "on another base: .* 2 blocks, .* 1 blocks, 16 channels, and 0 of "),
    (lambda: base(labels=["yes", "no"]), r"its head was trained with labels \['no', 'yes'\], the model has \['yes', 'no'\]"),
    (lambda: base(labels=["a", "b", "c"]), "its head was trained with labels"),
    (lambda: base(pooling="mean"), "its head was trained with pooling 'last', the model has 'mean'"),
    (lambda: base(labels=None), "trained under a classifier, the model is a backbone without a head"),
    (lambda: models.TokenClassifier(base(labels=None), LABELS), "trained under a classifier, the model is a token_classifier"),
    (lambda: with_tokenizer(base(), "other texts, other tokens"), "trained with another vocabulary")])
def test_another_base_head_or_vocabulary_is_told_and_nothing_changes(make, error, tmp_path):
    tune.save_adapter(with_tokenizer(tuned(tune.LoRAConfig(r=2)), "some texts and their tokens"), tmp_path, base="the/base")
    model = make()
    before = state(model)
    with pytest.raises(ValueError, match=error):
        tune.load_adapter(model, tmp_path)
    assert state(model) == before and tune.adapter_names(model) == []


def test_a_float64_or_reloaded_copy_of_the_base_is_the_same_base(tmp_path):
    tune.save_adapter(tuned(tune.LoRAConfig(r=2)), tmp_path / "adapter")
    base().save_pretrained(tmp_path / "base")
    for model in (models.from_pretrained(tmp_path / "base"), base().to(dtype="float64")):
        tune.load_adapter(model, tmp_path / "adapter")
        assert {p.dtype for p in model.parameters()} == {model.head.weight.dtype}


def test_a_transposed_factor_is_told_even_where_its_shape_is_right(tmp_path):
    """mlx-lm#1119: where dimensions agree an un-transposed factor loads and computes a different function."""
    from safetensors.numpy import save_file
    model = tuned(tune.LoRAConfig(r=16, target_modules=["attention.output"]))
    tune.save_adapter(model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.transformer.h.0.attn.c_proj.lora_A.weight"
    assert tensors[name].shape == (16, 16)
    save_file(tensors | {name: np.ascontiguousarray(tensors[name].T)}, file)
    with pytest.raises(ValueError, match="not the arrays that minitune_adapter.json describes .* a factor transposed"):
        tune.load_adapter(base(), tmp_path)
    save_file(tensors, file)                    # the same numbers, written by another tool
    tune.load_adapter(again := base(), tmp_path)
    assert np.array_equal(again(IDS).numpy(), model(IDS).numpy())


@pytest.mark.parametrize("prepare, error", [
    (lambda m: None, "the model has no adapter, and everything trains: save_pretrained writes the model"),
    (lambda m: (tune.apply(m, tune.LoRAConfig(r=2)), tune.merge(m), tune.freeze(m)), "merged into blocks.0.attention.query"),
    (lambda m: tune.freeze(m), "the model has no adapter, and nothing was trained")])
def test_a_model_without_an_adapter_is_told(prepare, error, tmp_path):
    model = base(labels=None)
    prepare(model)
    with pytest.raises(ValueError, match=error):
        tune.save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    tune.save_adapter(tuned(tune.LoRAConfig(r=2)), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "minitune_adapter.json"}

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        tune.save_adapter(tuned(tune.DoRAConfig(r=3)), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change, error", [
    (lambda f: shutil.rmtree(f), "adapter_config.json is missing"),
    (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "the folder holds adapter_model.bin"),
    (lambda f: base().save_pretrained(f) or (f / "adapter_config.json").unlink(), "holds a model, no adapter"),
    (lambda f: ((f / "deep").mkdir(), (f / "adapter_config.json").rename(f / "deep" / "adapter_config.json")),
     r"Is one of its folders meant: deep\?"),
    (lambda f: (f / "adapter_config.json").write_text("{"), "not valid JSON"),
    (lambda f: (f / "minitune_adapter.json").write_text("{"), "not valid JSON"),
    (lambda f: (f / "adapter_model.safetensors").write_bytes(b"no"), "not a whole safetensors file")])
def test_damaged_folders_are_told(change, error, tmp_path):
    tune.save_adapter(tuned(tune.LoRAConfig(r=2)), folder := tmp_path / "adapter")
    change(folder)
    model = base()
    before = state(model)
    with pytest.raises((FileNotFoundError, ValueError), match=error):
        tune.load_adapter(model, folder)
    assert state(model) == before


@pytest.mark.parametrize("change, error", [
    (lambda c: c["layers"]["blocks.0.mlp.up"].update(kind="magic"), "blocks.0.mlp.up: 'magic' is no kind of adapted layer"),
    (lambda c: c["layers"]["blocks.0.mlp.up"].pop("bottleneck"), "'bottleneck' is missing from what describes it"),
    (lambda c: c["layers"].update({"norm": c["layers"].pop("blocks.0.mlp.up")}), "norm: the model has no such layer"),
    (lambda c: c["layers"]["blocks.0.mlp.up"].update(bottleneck=5), r"down_project\.weight has shape"),
    (lambda c: c["layers"].update({"blocks.9.mlp.up": c["layers"].pop("blocks.0.mlp.up")}), "the model has no such layer|has "),
    (lambda c: c.update(layers=[]), r"layers is \[\], expected an object for each layer")])
def test_a_damaged_config_of_minitunes_form_is_told(change, error, tmp_path):
    tune.save_adapter(tuned(tune.AdapterConfig(4, target_modules=["mlp.up"])), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    change(config)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = base()
    before = state(model)
    with pytest.raises(ValueError, match=error):
        tune.load_adapter(model, tmp_path)
    assert state(model) == before


@pytest.mark.parametrize("method", [tune.PiSSAConfig(r=2), tune.QLoRAConfig(r=2)])
def test_an_adapter_that_was_made_of_other_weights_is_refused(method, tmp_path):
    """All that PiSSA and four bits leave alone is the same here; one weight that they were made of is not."""
    tune.save_adapter(tuned(method), tmp_path)
    other = base()
    other.backbone.blocks[1].mlp.up.weight.data[0, 0] += 0.5
    before = state(other)
    with pytest.raises(ValueError, match=r"trained on another base.*1 of \d+ arrays differ, as blocks\.1\.mlp\.up\.weight"):
        tune.load_adapter(other, tmp_path)
    assert state(other) == before
    tune.load_adapter(base(), tmp_path)


@pytest.mark.parametrize("method", [tune.PiSSAConfig(r=2), tune.QLoRAConfig(r=2)])
def test_a_training_on_four_bits_or_pissa_goes_on_only_on_its_base(method, tmp_path):
    def trainer(change):
        model = base(labels=None).train()
        model.blocks[0].mlp.up.weight.data[0, 0] += change
        tune.apply(model, method)
        rows = LanguageModelSet([np.arange(20) % 19] * 4, 6)
        return Trainer(model, rows, steps=2, lr=1e-3, batch_size=2, out=tmp_path, progress=False)

    begun = trainer(0.0)
    begun.fit()
    save_checkpoint(begun)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.up\.(base\.)?made_of was"):
        trainer(1e-4).fit(resume=True)
    again = trainer(0.0)
    again.fit(resume=True)
    assert np.array_equal(again.model.blocks[0].mlp.up.B.data, begun.model.blocks[0].mlp.up.B.data)


def test_an_adapter_that_waits_or_was_merged_is_not_left_out_of_what_is_saved(tmp_path):
    model = tuned(tune.LoRAConfig(r=2))
    certificate = tune.merge(model)
    with pytest.raises(ValueError, match=r"was merged into .*, and would be left out. Take it out again, tune\.unmerge"):
        tune.save_adapter(model, tmp_path)
    tune.unmerge(model, certificate)
    tune.set_adapter(model, None)
    with pytest.raises(ValueError, match=r"default would be left out. Put one in: tune\.set_adapter\(model, 'default'\)"):
        tune.save_adapter(model, tmp_path)
    assert not list(tmp_path.iterdir())
    tune.set_adapter(model, "default")
    assert tune.save_adapter(model, tmp_path).reason == ""


@pytest.mark.parametrize("method", [tune.BitFitConfig(), tune.PrefixConfig(2), tune.PromptConfig(2)])
def test_methods_that_would_freeze_an_adapter_refuse_it(method):
    model = tuned(tune.LoRAConfig(r=2))
    before = state(model)
    with pytest.raises(ValueError, match=f"{type(method).__name__}: the model has adapted layers already"):
        tune.apply(model, method)
    assert state(model) == before


def test_lora_alpha_0_is_saved(tmp_path):
    """Query, key and value are one layer of PEFT's, whose scale the thirds share: 0 is no divisor."""
    model = tuned(tune.LoRAConfig(r=2, lora_alpha=0))
    assert tune.save_adapter(model, tmp_path / "all").reason == ""
    again = base()
    tune.load_adapter(again, tmp_path / "all")
    assert np.array_equal(again(IDS).numpy(), model(IDS).numpy())
    model.backbone.blocks[0].attention.key.scale = 1.5
    assert "with one lora_alpha, which is 0 for some of its thirds" in tune.save_adapter(model, tmp_path / "some").reason
    again = base()
    tune.load_adapter(again, tmp_path / "some")
    assert np.array_equal(again(IDS).numpy(), model(IDS).numpy())


@pytest.mark.parametrize("method", [tune.PromptConfig(2), tune.PrefixConfig(2)])
def test_a_model_with_virtual_tokens_is_of_one_class_however_often_it_is_copied(method):
    model, other = tuned(method, labels=None), tuned(method, labels=None)
    assert type(copy.copy(model)) is type(copy.deepcopy(model)) is type(other) is type(model)
