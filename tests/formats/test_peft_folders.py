"""Adapters in PEFT's folders, both ways: what was trained here computes the same in PEFT, and what was trained there here."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import randomise, step

import minitune as mt
from minitune import models, tune
from minitune.data import Batch
from minitune.optim import AdamW

IDS = np.array([[3, 1, 4, 1, 5, 9], [2, 7, 18, 2, 8, 1], [6, 6, 2, 10, 7, 4]])
LABELS = ["bad", "fine", "good"]


def gpt(**settings):
    return models.GPT(models.GPTConfig(23, 14, 2, 2, 8, **settings))


def bert():
    return models.BERT(models.BERTConfig(23, 14, 2, 2, 8, n_inner=20))


def llama(**settings):
    return models.Llama(models.LlamaConfig(23, 14, 2, 4, 16, n_kv_head=2, n_inner=24, **settings))


MODELS = {
    "gpt": gpt, "llama": llama, "bert": bert,
    "gpt classifier": lambda: models.Classifier(gpt(), LABELS),
    "bert classifier": lambda: models.Classifier(bert(), LABELS),
    "llama classifier": lambda: models.Classifier(llama(), LABELS),
    "bert language model": lambda: models.MaskedLanguageModel(bert()),
    "bert token classifier": lambda: models.TokenClassifier(bert(), LABELS),
    "gpt several labels": lambda: models.MultiLabelClassifier(gpt(), LABELS),
}
LM, CLASSIFIERS = ("gpt", "llama", "bert language model"), ("gpt classifier", "bert classifier", "llama classifier")
METHODS = {
    "lora": lambda: tune.LoRAConfig(r=2, lora_alpha=6),
    "rslora": lambda: tune.LoRAConfig(r=3, lora_alpha=4, use_rslora=True, target_modules=["query", "value", "mlp.down"]),
    "dora": lambda: tune.DoRAConfig(r=2, lora_alpha=6, target_modules=["query", "value", "mlp"]),
    "pissa": lambda: tune.PiSSAConfig(r=2, lora_alpha=6),
    "ia3": tune.IA3Config,
    "prompt": lambda: tune.PromptConfig(3),
    "prefix": lambda: tune.PrefixConfig(3),
}
# PEFT lets BERT's classifier read the prompt, has no prompts for masked language models and no prefixes under a head
UNHELD = [("bert classifier", "prompt"), ("bert language model", "prompt"),
          *((model, "prefix") for model in MODELS if model not in ("gpt", "llama", "bert"))]
PAIRS = [(model, method) for method in METHODS for model in MODELS if (model, method) not in UNHELD]


def build(model):
    """A model with large numbers everywhere, in evaluation mode."""
    mt.seed(0)
    made = MODELS[model]()
    randomise(made.parameters(), 0, 0.3)
    return made.eval()


def supervised(model):
    rows = [row.tolist() for row in IDS]
    if isinstance(model, models.MaskedLanguageModel):
        batch = Batch.bidirectional(rows, [0, 0, 0])
        batch.targets = np.where(IDS % 3 == 0, IDS, -100)
        return batch
    if isinstance(model, models.TokenClassifier):
        batch = Batch.bidirectional(rows, [0, 0, 0])
        batch.targets = IDS % 3
        return batch
    if isinstance(model, models.MultiLabelClassifier):
        batch = Batch.causal([[row] for row in rows], [0, 0, 0])
        batch.targets = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 1]])
        return batch
    if isinstance(model, models.Classifier):
        return Batch.causal([[row] for row in rows], [0, 1, 2]) if model.causal else Batch.bidirectional(rows, [0, 1, 2])
    return Batch.causal([[row] for row in rows])


def trained(model, method, steps=2):
    """The model after two steps of training with this method; BERT by itself has no loss: its adapter gets random numbers."""
    tune.apply(model, METHODS[method]() if isinstance(method, str) else method)
    if isinstance(model, models.BERT):
        randomise([p for p in model.parameters() if p.requires_grad], 1)
        return model
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        step(model, optimizer, supervised(model))
    return model


# ---- Without PEFT ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("model, method", PAIRS)
def test_what_was_saved_comes_back(model, method, tmp_path):
    made = trained(build(model), method)
    expected = made(IDS).numpy()
    saved = tune.save_adapter(made, tmp_path)
    assert saved.reason == "" and json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] != "MINITUNE"
    again = build(model)
    assert np.abs(again(IDS).numpy() - expected).max() > 1e-3
    tune.load_adapter(again, tmp_path)
    # the bits of PiSSA's frozen part are those of W less a product; its file holds the product
    np.testing.assert_allclose(again(IDS).numpy(), expected, 1e-4 if method == "pissa" else 1e-6,
                               1e-4 if method == "pissa" else 1e-6)
    assert not again.training and any(p.requires_grad for p in again.parameters())


# ---- Against PEFT --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def oracles():
    torch = pytest.importorskip("torch", reason="PyTorch, on which PEFT runs, is not installed")
    transformers = pytest.importorskip("transformers", reason="Hugging Face's models, which PEFT adapts, are not installed")
    return torch, transformers, pytest.importorskip("peft", reason="PEFT, the oracle, is not installed")


def hugging_face(transformers, folder):
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    theirs = getattr(transformers, name).from_pretrained(folder).eval()
    theirs.config.pad_token_id = 0              # which no text here has; without one GPT-2's classifier takes one row alone
    return theirs


def result(torch, theirs):
    out = theirs(input_ids=torch.from_numpy(IDS), attention_mask=torch.ones(IDS.shape, dtype=torch.long))
    x = out.logits if "logits" in out else out.last_hidden_state
    return x[:, x.shape[1] - IDS.shape[1]:] if x.ndim == 3 else x


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("model, method", PAIRS)
def test_an_adapter_trained_here_computes_the_same_in_peft(model, method, tmp_path, oracles):
    torch, transformers, peft = oracles
    made = build(model)
    made.save_pretrained(tmp_path / "base")
    tune.save_adapter(trained(made, method), tmp_path / "adapter", base=str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(hugging_face(transformers, tmp_path / "base"), tmp_path / "adapter").eval()
    # float32 there and here, sums in other orders, logits of about 1 to 30
    np.testing.assert_allclose(result(torch, theirs).detach().numpy(), made(IDS).numpy(), 1e-4, 1e-4)


CONFIGS = {
    "lora": lambda peft: peft.LoraConfig(r=2, lora_alpha=6),
    "all-linear": lambda peft: peft.LoraConfig(r=2, target_modules="all-linear", exclude_modules=["transform.dense"]),
    "rslora": lambda peft: peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True),
    "dora": lambda peft: peft.LoraConfig(r=2, use_dora=True),
    "pissa": lambda peft: peft.LoraConfig(r=2, lora_alpha=6, init_lora_weights="pissa"),
    "ia3": lambda peft: peft.IA3Config(),
    "prompt": lambda peft: peft.PromptTuningConfig(num_virtual_tokens=3),
    "prefix": lambda peft: peft.PrefixTuningConfig(num_virtual_tokens=3),
}
TASKS = {"gpt": "CAUSAL_LM", "llama": "CAUSAL_LM", "bert": "FEATURE_EXTRACTION", "bert language model": None,
         "bert token classifier": "TOKEN_CLS"}


def trained_there(torch, theirs):
    """Two steps towards random outputs."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.05)
    target = torch.randn(result(torch, theirs).shape)
    for _ in range(2):
        (result(torch, theirs) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("model, method", [(model, method) for model in MODELS for method in CONFIGS
                                           if (model, method) in PAIRS       # a head of tokens is one of "all-linear" there
                                           or method == "all-linear" and model != "bert token classifier"])
def test_an_adapter_trained_in_peft_computes_the_same_here(model, method, tmp_path, oracles):
    torch, transformers, peft = oracles
    build(model).save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    config = CONFIGS[method](peft)
    config.task_type = TASKS.get(model, "SEQ_CLS")
    theirs = peft.get_peft_model(hugging_face(transformers, tmp_path / "base"), config).eval()
    trained_there(torch, theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = models.from_pretrained(tmp_path / "base")
    before = ours(IDS).numpy()
    tune.load_adapter(ours, tmp_path / "adapter", keep_head=model == "bert language model")
    expected = result(torch, theirs).detach().numpy()
    assert np.abs(before - expected).max() > 1e-2
    np.testing.assert_allclose(ours(IDS).numpy(), expected, 1e-4, 1e-4)     # as above
    again = tune.save_adapter(ours, tmp_path / "again")                     # and back
    back = peft.PeftModel.from_pretrained(hugging_face(transformers, tmp_path / "base"), tmp_path / "again").eval()
    assert again.reason == ""
    np.testing.assert_allclose(result(torch, back).detach().numpy(), expected, 1e-4, 1e-4)


SETTINGS = {
    "list of ends": ("gpt", dict(target_modules=["attn.c_proj", "c_fc"])),
    "regular expression": ("bert", dict(target_modules=r".*layer\.1\.attention\.self\.(query|key)")),
    "layers_to_transform": ("llama", dict(target_modules=["q_proj", "up_proj"], layers_to_transform=[1])),
    "layers_pattern": ("gpt", dict(target_modules=["c_attn"], layers_to_transform=0, layers_pattern="h")),
    "exclude_modules": ("llama", dict(target_modules=["q_proj", "up_proj"], exclude_modules=r".*\.0\..*up_proj")),
    "rank_pattern, alpha_pattern": ("llama", dict(
        target_modules=["q_proj", "up_proj"], rank_pattern={"q_proj": 5, r"layers.1.mlp.up_proj": 1}, use_rslora=True,
        alpha_pattern={"model.layers.0.self_attn.q_proj": 7})),
    "an embedding of its own": ("llama", dict(target_modules=["embed_tokens", "v_proj"])),
    "an output of its own": ("llama", dict(target_modules=["lm_head", "v_proj"])),
    "a norm in full": ("gpt", dict(target_modules=["c_attn"], modules_to_save=["ln_f"])),
    "dropout": ("gpt classifier", dict(target_modules=["mlp.c_proj"], lora_dropout=0.3)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("setting", SETTINGS)
def test_pefts_settings_mean_the_same_here(setting, tmp_path, oracles):
    torch, transformers, peft = oracles
    model, settings = SETTINGS[setting]
    build(model).save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=6, task_type=TASKS.get(model, "SEQ_CLS"), **settings)
    theirs = peft.get_peft_model(hugging_face(transformers, tmp_path / "base"), config).eval()
    trained_there(torch, theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = models.from_pretrained(tmp_path / "base")
    tune.load_adapter(ours, tmp_path / "adapter")
    expected = result(torch, theirs).detach().numpy()
    np.testing.assert_allclose(ours(IDS).numpy(), expected, 1e-4, 1e-4)     # as above
    assert tune.save_adapter(ours, tmp_path / "again").reason == ""
    back = peft.PeftModel.from_pretrained(hugging_face(transformers, tmp_path / "base"), tmp_path / "again").eval()
    np.testing.assert_allclose(result(torch, back).detach().numpy(), expected, 1e-4, 1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_lora_on_an_embedding_that_is_the_output_too_is_both_in_peft(tmp_path, oracles):
    torch, transformers, peft = oracles
    model = build("gpt")
    model.save_pretrained(tmp_path / "base")
    trained(model, tune.LoRAConfig(r=2, target_modules=["token_embedding", "query"]))
    tune.save_adapter(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(hugging_face(transformers, tmp_path / "base"), tmp_path / "adapter").eval()
    np.testing.assert_allclose(result(torch, theirs).detach().numpy(), model(IDS).numpy(), 1e-4, 1e-4)      # as above


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("settings, error", [
    (dict(target_modules=["wte"]), "transformer.wte: PEFT adapts the embedding alone, and here it is the output matrix, too"),
    (dict(target_modules=["lm_head"]), "lm_head: the output matrix is the token embedding here"),
    (dict(target_modules=["c_attn"], bias="all"), "bias is 'all': the base's biases were trained, too"),
    (dict(target_modules=["c_attn"], init_lora_weights="olora"), "init_lora_weights is 'olora': the base was changed"),
    (dict(target_modules=["wte", "c_attn"], use_dora=True), "transformer.wte: DoRA on a layer of kind embedding"),
    (dict(target_modules=["c_attn"], lora_bias=True), "lora_bias is True, which minitune does not compute"),
    (dict(target_modules=["c_attn"], trainable_token_indices=[3]), "trainable_token_indices is .* not compute")])
def test_what_peft_computes_and_minitune_does_not_is_told(settings, error, tmp_path, oracles):
    torch, transformers, peft = oracles
    build("gpt").save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    theirs = peft.get_peft_model(hugging_face(transformers, tmp_path / "base"), config)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = models.from_pretrained(tmp_path / "base")
    before = ours(IDS).numpy()
    with pytest.raises(ValueError, match=error):
        tune.load_adapter(ours, tmp_path / "adapter")
    assert np.array_equal(ours(IDS).numpy(), before) and all(p.requires_grad for p in ours.parameters())


# ---- Joined layers, and folders that PEFT would take in silence ---------------------------------------------------

def of_lora(tmp_path, method=None, model="gpt"):
    """(model, config, tensors) of an adapter in tmp_path that has lost minitune_adapter.json, as one by PEFT."""
    made = trained(build(model), method or tune.LoRAConfig(r=2, lora_alpha=6))
    tune.save_adapter(made, tmp_path)
    (tmp_path / "minitune_adapter.json").unlink()
    return made, json.loads((tmp_path / "adapter_config.json").read_text()), load_file(tmp_path / "adapter_model.safetensors")


def rewrite(tmp_path, config, tensors):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, tmp_path / "adapter_model.safetensors")


C_ATTN = "base_model.model.transformer.h.0.attn.c_attn"


def test_query_key_and_value_are_joined_block_by_block(tmp_path):
    made, config, tensors = of_lora(tmp_path, tune.LoRAConfig(r=2, lora_alpha=6, target_modules=["query", "value", "mlp.up"]))
    attention = made.blocks[0].attention
    A, B = tensors[f"{C_ATTN}.lora_A.weight"], tensors[f"{C_ATTN}.lora_B.weight"]
    assert np.array_equal(A, np.concatenate([attention.query.A.data, attention.value.A.data]))
    assert np.array_equal(B[:8, :2], attention.query.B.data) and np.array_equal(B[16:, 2:], attention.value.B.data)
    assert not B[:8, 2:].any() and not B[8:16].any() and not B[16:, :2].any()
    assert config["target_modules"] == ["attn.c_attn", "mlp.c_fc"] and {config["r"], *config["rank_pattern"].values()} == {2, 4}
    again = build("gpt")
    tune.load_adapter(again, tmp_path)          # the blocks are found by their zeros
    assert not hasattr(again.blocks[0].attention.key, "A") and len(again.blocks[0].attention.query.A) == 2
    np.testing.assert_allclose(again(IDS).numpy(), made(IDS).numpy(), 1e-6, 1e-6)       # scale is alpha / r, rounded once more


def test_thirds_of_unequal_scale_are_joined_at_one(tmp_path):
    model = trained(build("gpt"), tune.LoRAConfig(r=2, lora_alpha=6, target_modules=["query", "value"]))
    model.blocks[0].attention.value.scale *= 0.4
    tune.save_adapter(model, tmp_path)
    again = build("gpt")
    tune.load_adapter(again, tmp_path)
    assert again.blocks[0].attention.value.scale == again.blocks[0].attention.query.scale
    np.testing.assert_allclose(again(IDS).numpy(), model(IDS).numpy(), 1e-5, 1e-5)      # B is multiplied by 0.4, and rounded


def test_a_shared_a_is_copied_and_written_once(tmp_path):
    """As every adapter that PEFT trained on c_attn: loaded, saved, the same arrays."""
    made, config, tensors = of_lora(tmp_path)
    draw = np.random.default_rng(3)
    shared = {name: draw.standard_normal((4, 8) if "lora_A" in name else (24, 4)).astype(np.float32)
              for name in tensors if "c_attn" in name}
    config |= {"r": 4, "lora_alpha": 6, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": ["c_attn"]}
    rewrite(tmp_path, config, shared)
    again = build("gpt")
    tune.load_adapter(again, tmp_path)
    attention = again.blocks[0].attention
    for which, layer in enumerate((attention.query, attention.key, attention.value)):
        assert np.array_equal(layer.A.data, shared[f"{C_ATTN}.lora_A.weight"])
        assert np.array_equal(layer.B.data, shared[f"{C_ATTN}.lora_B.weight"][8 * which:8 * which + 8])
    tune.save_adapter(again, tmp_path / "again")
    written = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert set(written) == set(shared) and all(np.array_equal(written[name], shared[name]) for name in shared)
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["r"] == 4


def test_a_fresh_adapter_comes_back_with_its_ranks(tmp_path):
    """B is 0 throughout: minitune_adapter.json says which ranks are whose."""
    model = build("gpt")
    tune.apply(model, tune.LoRAConfig(r=2, target_modules=["query", "value"]))
    tune.save_adapter(model, tmp_path)
    again = build("gpt")
    report = tune.load_adapter(again, tmp_path)
    assert str(report) == str(tune.report(model)) and list(again.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("change, error", [
    (lambda c, t: t.update({f"{C_ATTN}.lora_A.weight": t[f"{C_ATTN}.lora_A.weight"].T}),
     r"c_attn\.lora_A\.weight: expected \(6, 8\), got \(8, 6\)\. It is transposed: mlx writes its factors so"),
    (lambda c, t: t.update({f"{C_ATTN}.lora_B.weight": t[f"{C_ATTN}.lora_B.weight"].T}),
     r"c_attn\.lora_B\.weight: expected \(24, 6\), got \(6, 24\)\. It is transposed"),
    (lambda c, t: c.update(r=5, rank_pattern={}), r"c_attn\.lora_A\.weight: expected \(5, 8\), got \(6, 8\)"),
    (lambda c, t: t.pop(f"{C_ATTN}.lora_B.weight"), r"c_attn\.lora_B\.weight: missing"),
    (lambda c, t: [t.pop(f"{C_ATTN}.lora_{f}.weight") for f in "AB"],
     r"transformer\.h\.0\.attn\.c_attn: target_modules mean it, and the file has no arrays for it"),
    (lambda c, t: t.clear(), "the file holds no arrays of LORA"),
    (lambda c, t: t.update({C_ATTN.replace("h.0", "h.7") + ".lora_A.weight": t[f"{C_ATTN}.lora_A.weight"]}),
     r"transformer\.h\.7\.attn\.c_attn: the model has no such layer"),
    (lambda c, t: t.update({"base_model.model.score.weight": np.zeros((3, 8), np.float32)}),
     r"score\.weight: the model has no such parameter. Is it of another head"),
    (lambda c, t: t.update({"base_model.model.transformer.wte.weight": np.zeros((30, 8), np.float32)}),
     "token_embedding.weight: 30 rows, the model has 23. Was the adapter trained with another"),
    (lambda c, t: t.update({"base_model.model.transformer.ln_f.weight": np.ones(8, np.float32)}),
     "norm.weight: not the base's weight, and modules_to_save does not name it"),
    (lambda c, t: t.update({f"{C_ATTN}.lora_A.weight": t[f"{C_ATTN}.lora_A.weight"].astype(np.int32)}), "int32 numbers"),
    (lambda c, t: c.update(use_dora=True), "lora_magnitude_vector: missing, or the layer is of another kind"),
    (lambda c, t: c.update(r="8", alpha_pattern={"c_attn": None}), "r is .8., expected a positive integer; alpha_pattern is"),
    (lambda c, t: c.update(peft_type="LOHA"), "peft_type is 'LOHA', expected LORA, IA3"),
    (lambda c, t: c.update(target_modules="(c_attn"), "no regular expression"),
    (lambda c, t: c.update(layer_replication=[[0, 2], [0, 2]]), "layer_replication is .* which minitune does not compute"),
    (lambda c, t: c.update(use_qalora=True), "use_qalora is True, which minitune does not compute"),
    (lambda c, t: c.update(init_lora_weights="pissa", use_dora=True), "'pissa' beside use_dora")])
def test_a_folder_that_does_not_fit_is_told_and_nothing_changes(change, error, tmp_path):
    _, config, tensors = of_lora(tmp_path)
    change(config, tensors)
    rewrite(tmp_path, config, tensors)
    model = build("gpt")
    before = model(IDS).numpy()
    with pytest.raises(ValueError, match=error):
        tune.load_adapter(model, tmp_path)
    assert np.array_equal(model(IDS).numpy(), before) and all(p.requires_grad for p in model.parameters())
    assert tune.adapter_names(model) == []


@pytest.mark.parametrize("method, change, error", [
    (tune.IA3Config(), lambda c, t: t.update({f"{C_ATTN}.ia3_l": np.ones((8, 1), np.float32)}), r"ia3_l: expected \(24, 1\)"),
    (tune.PromptConfig(3), lambda c, t: c.update(num_virtual_tokens=4), r"prompt_embeddings: expected \(4, 8\), got \(3, 8\)"),
    (tune.PrefixConfig(3), lambda c, t: t.update(prompt_embeddings=t["prompt_embeddings"].T), r"got \(32, 3\)"),
    (tune.PrefixConfig(3), lambda c, t: c.update(prefix_projection=True), "prefix_projection is true"),
    (tune.PromptConfig(3), lambda c, t: c.update(num_transformer_submodules=2), "num_transformer_submodules is not 1")])
def test_other_kinds_that_do_not_fit(method, change, error, tmp_path):
    _, config, tensors = of_lora(tmp_path, method)
    change(config, tensors)
    rewrite(tmp_path, config, tensors)
    with pytest.raises(ValueError, match=error):
        tune.load_adapter(build("gpt"), tmp_path)


def test_bert_s_output_that_was_trained_apart_from_its_words_is_told(tmp_path):
    """PEFT's modules_to_save is a copy, no longer tied; minitune has one matrix for both."""
    _, config, tensors = of_lora(tmp_path, model="bert language model")
    name = "base_model.model.cls.predictions.decoder.weight"
    assert np.array_equal(tensors[name], build("bert language model").backbone.token_embedding.weight.data)
    tune.load_adapter(build("bert language model"), tmp_path)
    rewrite(tmp_path, config, tensors | {name: tensors[name] + 1})
    with pytest.raises(ValueError, match="decoder.weight: not bert.embeddings.word_embeddings.weight, with which it is one"):
        tune.load_adapter(build("bert language model"), tmp_path)


@pytest.mark.filterwarnings("ignore")           # of PEFT and transformers about each other
def test_a_fresh_adapter_of_pefts_is_one_for_query_key_and_value(tmp_path):
    """B is 0 in all rows, so nothing but the shape says for which of the three it is: each gets all ranks."""
    peft, transformers = (pytest.importorskip(name, reason=f"{name}, the oracle, is not installed")
                          for name in ("peft", "transformers"))
    model = build("gpt")
    model.save_pretrained(tmp_path / "base")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["c_attn"], fan_in_fan_out=True)
    peft.get_peft_model(theirs, config).save_pretrained(tmp_path / "fresh")
    assert not (tmp_path / "fresh" / "minitune_adapter.json").exists()
    tensors = load_file(tmp_path / "fresh" / "adapter_model.safetensors")
    tune.load_adapter(model, tmp_path / "fresh")
    for i, block in enumerate(model.blocks):
        A = tensors[f"base_model.model.transformer.h.{i}.attn.c_attn.lora_A.weight"]
        for layer in (block.attention.query, block.attention.key, block.attention.value):
            assert np.array_equal(layer.A.data, A) and layer.B.shape == (8, 3) and not layer.B.data.any()
