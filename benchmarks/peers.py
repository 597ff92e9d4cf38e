"""What minitune is compared with: the same GPT in plain PyTorch, and Hugging Face's GPT-2 with PEFT. Each gives its step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from measure import LORA_ALPHA, RATE, R, Size, tokens
from torch import nn

Step = Callable[[], Any]                # gives the loss: a float, or a tensor that waits on a GPU


class LoRALinear(nn.Module):
    """A frozen linear layer, and (x A^T) B^T times a scale beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.scale = base, LORA_ALPHA / R
        self.A = nn.Parameter(torch.randn(R, base.in_features) * base.in_features**-0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, R))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + F.linear(F.linear(x, self.A), self.B) * self.scale


class Block(nn.Module):
    """A pre-norm transformer block; query, key and value are one layer."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.output = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))          # (B, H, T, D)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class GPT(nn.Module):
    """minitune's GPT, as a PyTorch user would write it."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(size.V, size.C), nn.Embedding(size.T, size.C)
        self.blocks = nn.ModuleList(Block(size.C, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.C)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.token_embedding.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def torch_gpt(size: Size, mode: str) -> GPT:
    """The plain GPT, prepared for "full" training, "lora" on every linear layer, or its "last" block alone."""
    torch.manual_seed(0)
    model = GPT(size)
    for embedding in (model.token_embedding, model.position_embedding):
        nn.init.normal_(embedding.weight, std=0.02)
    return prepared(model, mode)


def prepared(model: GPT, mode: str) -> GPT:
    """The model, ready for what the mode trains."""
    if mode == "lora":
        model.requires_grad_(False)
        for block in model.blocks:
            for name in ("qkv", "output", "up", "down"):
                setattr(block, name, LoRALinear(getattr(block, name)))
    if mode == "last":
        train_only(model, [model.blocks[-1], model.norm])
    return model


def copy_weights(source: Any, target: GPT) -> None:
    """Gives a plain GPT the weights of a minitune model, without adapters."""
    state = {name.replace("attention.output", "output").replace("mlp.", ""): torch.tensor(array)
             for name, array in source.state_dict().items()}
    for i in range(len(source.blocks)):
        for part in ("weight", "bias"):
            parts = [state.pop(f"blocks.{i}.attention.{name}.{part}") for name in ("query", "key", "value")]
            state[f"blocks.{i}.qkv.{part}"] = torch.cat(parts)
    target.load_state_dict(state)


def torch_step(model: nn.Module, size: Size, compiled: bool = False, bf16: bool = False, device: str = "cpu") -> Step:
    """A step of the plain GPT on the benchmark's tokens."""
    ids = torch.tensor(tokens(size), device=device)
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    run = torch.compile(model, dynamic=False) if compiled else model        # else the second size it sees gets slower code
    return stepping(lambda: run(x, y), model.to(device).parameters(), bf16, device)


def hugging_face_step(size: Size, mode: str, bf16: bool = False, device: str = "cpu", source: Any = None) -> Step:
    """A step of transformers' GPT-2, by PEFT where the mode is "lora", with the weights of a minitune model where one is given.
    Its loss shifts the labels itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # what other libraries deprecate is not ours to mend
        from transformers import GPT2Config, GPT2LMHeadModel
        config = GPT2Config(vocab_size=size.V, n_positions=size.T, n_embd=size.C, n_layer=size.layers, n_head=size.heads,
                            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, attn_implementation="sdpa",
                            bos_token_id=None, eos_token_id=None)
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).train()
        if source is not None:
            given = {name: torch.tensor(array) for name, array in source.to_hugging_face()[1].items()}
            missing, unknown = model.load_state_dict(given, strict=False)
            assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
        if mode == "lora":
            from peft import LoraConfig, get_peft_model
            model = get_peft_model(model, LoraConfig(r=R, lora_alpha=LORA_ALPHA, target_modules=["c_attn", "c_proj", "c_fc"],
                                                     fan_in_fan_out=True, task_type="CAUSAL_LM"))
    if mode == "last":
        train_only(model, [model.transformer.h[-1], model.transformer.ln_f])
    x = torch.tensor(tokens(size), device=device)[:, :-1].contiguous()
    return stepping(lambda: model(input_ids=x, labels=x).loss, model.to(device).parameters(), bf16, device)


def train_only(model: nn.Module, parts: list[nn.Module]) -> None:
    """Freezes all but these parts."""
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)


def stepping(loss_of: Callable[[], torch.Tensor], parameters: Iterable[nn.Parameter], bf16: bool = False,
             device: str = "cpu") -> Step:
    """Forward, backward, clipping at norm 1, fused AdamW. On a GPU nothing waits for the loss, which stays there."""
    trained = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, fused=True)

    def step() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item() if device == "cpu" else loss.detach()

    return step
