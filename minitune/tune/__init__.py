"""Tuning methods: full, frozen, LoRA; each a dataclass that `apply` takes whole."""

from .apply import apply
from .audit import Audit, audit, require_held
from .freezing import FreezeConfig, FullConfig, freeze, freeze_to, unfreeze
from .lora import Certificate, LoRAConfig, LoRALinear, merge, unmerge
from .report import Report, report

__all__ = ["Audit", "Certificate", "FreezeConfig", "FullConfig", "LoRAConfig", "LoRALinear", "Report", "apply", "audit",
           "freeze", "freeze_to", "merge", "report", "require_held", "unfreeze", "unmerge"]
