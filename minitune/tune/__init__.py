"""Tuning methods: full, frozen, LoRA; each a dataclass that `apply` takes whole."""

from .apply import apply
from .audit import Audit, audit, require_held
from .bitfit import BitFitConfig
from .dora import DoRAConfig, DoRALinear
from .freezing import FreezeConfig, FullConfig, freeze, freeze_to, unfreeze
from .houlsby import AdapterConfig, AdapterLinear
from .ia3 import IA3Config, IA3Linear
from .lora import Certificate, LoRAConfig, LoRALayer, LoRALinear, merge, unmerge
from .lora_layers import LoRAConv2d, LoRAEmbedding
from .lora_plus import lora_plus
from .nf4 import NF4Linear, QLoRAConfig, QLoRALinear
from .pissa import PiSSAConfig, PiSSALinear, pissa_to_lora
from .prefix import PrefixAttention, PrefixConfig
from .prompt import PromptConfig, PromptEmbedding
from .rates import discriminative, rates_by_step
from .report import Report, report
from .top_layers import TopLayersConfig
from .unfreezing import Unfreezing, all_at_once, chain_thaw, gradual, last_only
from .virtual_tokens import VirtualTokens
from .vocabulary import Remapping, remap_vocabulary

__all__ = ["AdapterConfig", "AdapterLinear", "Audit", "BitFitConfig", "Certificate", "DoRAConfig", "DoRALinear", "FreezeConfig",
           "FullConfig", "IA3Config", "IA3Linear", "LoRAConfig", "LoRAConv2d", "LoRAEmbedding", "LoRALayer", "LoRALinear",
           "NF4Linear", "PiSSAConfig", "PiSSALinear", "PrefixAttention", "PrefixConfig", "PromptConfig", "PromptEmbedding",
           "QLoRAConfig", "QLoRALinear", "Remapping", "Report", "TopLayersConfig", "Unfreezing", "VirtualTokens", "all_at_once",
           "apply", "audit", "chain_thaw", "discriminative", "freeze", "freeze_to", "gradual", "last_only", "lora_plus",
           "merge", "pissa_to_lora", "rates_by_step", "remap_vocabulary", "report", "require_held", "unfreeze", "unmerge"]
