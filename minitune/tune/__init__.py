"""Tuning methods: full, frozen, LoRA; each a dataclass that `apply` takes whole."""

from .apply import apply
from .freezing import FreezeConfig, FullConfig, freeze, freeze_to, unfreeze
from .lora import Certificate, LoRAConfig, LoRALinear, merge, unmerge
from .report import Report, report

__all__ = ["Certificate", "FreezeConfig", "FullConfig", "LoRAConfig", "LoRALinear", "Report", "apply", "freeze",
           "freeze_to", "merge", "report", "unfreeze", "unmerge"]
