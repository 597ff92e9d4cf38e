"""Tuning methods: full, frozen, LoRA; each a dataclass that `apply` takes whole."""

from .adapters import active_adapter, adapter_names, add_adapter, add_weighted_adapter, remove_adapter, set_adapter
from .apply import apply
from .audit import Audit, audit, require_held
from .bitfit import BitFitConfig
from .dora import DoRAConfig, DoRALinear
from .extraction import Extraction, extract_lora
from .freezing import FreezeConfig, FullConfig, freeze, freeze_to, unfreeze
from .houlsby import AdapterConfig, AdapterLinear
from .ia3 import IA3Config, IA3Linear
from .lora import Certificate, LoRAConfig, LoRALayer, LoRALinear, merge, unmerge
from .lora_layers import LoRAConv2d, LoRAEmbedding
from .lora_plus import lora_plus
from .merged import SavedModel, save_merged, untie
from .nf4 import NF4Linear, QLoRAConfig, QLoRALinear
from .pissa import PiSSAConfig, PiSSALinear, pissa_to_lora
from .prefix import PrefixAttention, PrefixConfig
from .prompt import PromptConfig, PromptEmbedding
from .rates import discriminative, rates_by_step
from .report import Report, report
from .saving import SavedAdapter, load_adapter, save_adapter
from .standardized import StandardizedLinear, fold, standardize
from .top_layers import TopLayersConfig
from .unfreezing import Unfreezing, all_at_once, chain_thaw, gradual, last_only
from .virtual_tokens import VirtualTokens
from .vocabulary import Remapping, remap_vocabulary

__all__ = ["AdapterConfig", "AdapterLinear", "Audit", "BitFitConfig", "Certificate", "DoRAConfig", "DoRALinear", "Extraction",
           "FreezeConfig", "FullConfig", "IA3Config", "IA3Linear", "LoRAConfig", "LoRAConv2d", "LoRAEmbedding", "LoRALayer",
           "LoRALinear", "NF4Linear", "PiSSAConfig", "PiSSALinear", "PrefixAttention", "PrefixConfig", "PromptConfig",
           "PromptEmbedding", "QLoRAConfig", "QLoRALinear", "Remapping", "Report", "SavedAdapter", "SavedModel",
           "StandardizedLinear", "TopLayersConfig", "Unfreezing", "VirtualTokens", "active_adapter", "adapter_names",
           "add_adapter", "add_weighted_adapter", "all_at_once", "apply", "audit", "chain_thaw", "discriminative",
           "extract_lora", "fold", "freeze", "freeze_to", "gradual", "last_only", "load_adapter", "lora_plus", "merge",
           "pissa_to_lora", "rates_by_step", "remap_vocabulary", "remove_adapter", "report", "require_held", "save_adapter",
           "save_merged", "set_adapter", "standardize", "unfreeze", "unmerge", "untie"]
