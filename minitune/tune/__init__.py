"""Tuning methods: full, frozen, LoRA; each a dataclass that `apply` takes whole."""

from .apply import apply
from .audit import Audit, audit, require_held
from .freezing import FreezeConfig, FullConfig, freeze, freeze_to, unfreeze
from .lora import Certificate, LoRAConfig, LoRALinear, merge, unmerge
from .rates import discriminative, rates_by_step
from .report import Report, report
from .unfreezing import Unfreezing, all_at_once, chain_thaw, gradual, last_only
from .vocabulary import Remapping, remap_vocabulary

__all__ = ["Audit", "Certificate", "FreezeConfig", "FullConfig", "LoRAConfig", "LoRALinear", "Remapping", "Report",
           "Unfreezing", "all_at_once", "apply", "audit", "chain_thaw", "discriminative", "freeze", "freeze_to", "gradual",
           "last_only", "merge", "rates_by_step", "remap_vocabulary", "report", "require_held", "unfreeze", "unmerge"]
