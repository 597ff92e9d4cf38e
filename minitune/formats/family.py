"""A family of models in Hugging Face's folders: a table of sizes, a table of names, and what both mean when read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

REQUIRED = object()                             # the default of a setting that has none


@dataclass(frozen=True)
class Expected:
    """What a value of config.json must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def number(value: Any) -> bool:
    """Whether this is a number that a model can compute with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


SIZE = Expected("a positive integer", lambda value: type(value) is int and 0 < value < 2**31)
POSITIVE = Expected("a number above 0", lambda value: number(value) and value > 1e-30)
FRACTION = Expected("a number from 0 to below 1", lambda value: number(value) and 0 <= value < 1)
FLAG = Expected("true or false", lambda value: isinstance(value, bool))


@dataclass(frozen=True)
class Setting:
    """A key of config.json: the field of the model's config that it fills, what it may be, and what it is where absent."""

    own: str
    expected: Expected = SIZE
    default: Any = REQUIRED


@dataclass(frozen=True)
class Head:
    """A class of Hugging Face that puts a head on the family's backbone.

    `kind` is minitune's; `names` are as in Family, none of them under the prefix; `when` are the settings under which both
    compute the same; `lacks` are parts of the backbone that the class has not and its head does not read.
    A class for a classifier is one for several labels at once too, where config.json has the problem type MULTI_LABEL.
    """

    kind: str
    architecture: str
    names: dict[str, str]
    when: dict[str, Any] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    bias: bool = True                           # may its layer have one?


MULTI_LABEL = "multi_label_classification"

# a head's kind -> what its constructor takes beside the backbone
KINDS: dict[str | None, tuple[str, ...]] = {
    None: (),
    "classifier": ("labels", "pooling", "auxiliary"),
    "multi_label_classifier": ("labels", "pooling"),
    "token_classifier": ("labels",),
    "multiple_choice": ("choices", "pooling"),
    "masked_language_model": ("next_sentence",),
}
OWN_DEFAULTS = {"choices": 2}                   # what Hugging Face's folders do not say


@dataclass(frozen=True)
class Stored:
    """What a folder holds: the fields of the backbone's config, arrays in minitune's names, a head's kind and settings.

    `misfits` are complaints about single arrays, to be told together with those that building the model finds.
    """

    fields: dict[str, Any]
    state: Arrays
    kind: str | None
    settings: dict[str, Any]
    misfits: list[str]


@dataclass(frozen=True)
class Family:
    """How the models of one backbone look in config.json and model.safetensors, there and back.

    Names are modules or parameters, minitune's -> Hugging Face's, {i} the block. Where Hugging Face has no class that
    computes what a head does, the folder gets a model type of its own, so that its tools refuse it.
    """

    title: str
    name: str                                   # Hugging Face's model type
    architectures: tuple[str, ...]              # Hugging Face's classes of the backbone by itself; the first is written
    prefix: str
    sizes: dict[str, Setting]
    fixed: dict[str, Any]                       # what minitune computes: a folder that says otherwise is refused
    names: dict[str, str]
    heads: tuple[Head, ...]
    prefixed: bool = True                       # has the backbone by itself the prefix?
    outside: dict[str, str] = field(default_factory=dict)       # names of the backbone that never have the prefix
    written: dict[str, Any] = field(default_factory=dict)       # written and never read
    transposed: tuple[str, ...] = ()            # ends of the names whose matrices are stored as (in, out)
    renamed: dict[str, str] = field(default_factory=dict)       # ends of names in old files -> today's
    ignored: str = r"(?!)"                      # pattern of names that hold nothing learned
    # config.json -> {copy: what it is a copy of}, in Hugging Face's names
    tied: Callable[[dict[str, Any]], dict[str, str]] = lambda config: {}
    # fields that a config may leave at None, with what None means; where that is what a folder says, they are None again
    derived: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: {}
    spell: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config       # config.json's other spellings, written
    unify: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config       # and read
    join: Callable[[Arrays], Arrays] = lambda state: state      # arrays that are one there
    split: Callable[[Arrays, list[str]], Arrays] = lambda state, misfits: state     # and apart again, or a misfit
    # fields that the arrays tell: (config, state, settings) -> fields
    found: Callable[[dict[str, Any], Arrays, dict[str, Any]], dict[str, Any]] = lambda config, state, settings: {}

    # ---- Writing -------------------------------------------------------------------------------------------------------

    def write(self, config: Any, state: Arrays, kind: str | None = None,
              settings: dict[str, Any] | None = None) -> tuple[dict[str, Any], Arrays]:
        """(config.json, tensors) of a backbone, or of a head of this kind on one.

        Raises ValueError for names that the format has no place for.
        """
        settings = settings or {}
        head = self.class_for(kind, settings, state)
        fields = {setting.own: getattr(config, setting.own) for setting in self.sizes.values()}
        fields |= {name: value for name, value in self.derived(fields).items() if fields[name] is None}
        described = {"model_type": self.name, "architectures": [head.architecture if head else self.architectures[0]],
                     **self.fixed, **self.written, **{key: fields[setting.own] for key, setting in self.sizes.items()}}
        described = self.spell(described) | settings_to_config(settings)
        if kind is not None and head is None:
            described |= own_type(self.name, kind)
        elif kind == "multi_label_classifier":
            described["problem_type"] = MULTI_LABEL
        return described, self._tensors(state, kind)

    def _classes(self, kind: str | None) -> list[Head]:
        """The classes of Hugging Face with a head of this kind."""
        kind = "classifier" if kind == "multi_label_classifier" else kind
        return [head for head in self.heads if head.kind == kind]

    def class_for(self, kind: str | None, settings: dict[str, Any], state: Arrays) -> Head | None:
        """The class of Hugging Face that computes this, or None."""
        for head in self._classes(kind):
            lost = any(_part_of(name, head.lacks) for name in state) or "head.bias" in state and not head.bias
            if not lost and all(settings.get(key) == value for key, value in head.when.items()):
                return head
        return None

    def _tensors(self, state: Arrays, kind: str | None) -> Arrays:
        backbone = "" if kind is None else "backbone."
        outer = {name: array for name, array in state.items() if not name.startswith(backbone)}
        inner = self.join({name.removeprefix(backbone): array for name, array in state.items() if name.startswith(backbone)})
        prefix = self.prefix if self.prefixed or kind is not None else ""
        tensors, homeless = {}, []
        for name, array in inner.items():
            if (theirs := translate(name, self.names)) is not None:
                tensors[prefix + theirs] = array.T if theirs.endswith(self.transposed) else array
            elif (theirs := translate(name, self.outside)) is not None:
                tensors[theirs] = array
            else:
                homeless.append(backbone + name)
        names = self.head_names(kind)
        for name, array in outer.items():
            theirs = name if names is None else translate(name, names)
            if theirs is None:
                homeless.append(name)
            else:
                tensors[theirs] = array
        if homeless:
            raise ValueError(no_place(self.title, homeless))
        return tensors

    def head_names(self, kind: str | None) -> dict[str, str] | None:
        """All names of a kind of head; None where Hugging Face has no such head: it keeps minitune's."""
        tables = [head.names for head in self._classes(kind)]
        return {own: theirs for table in tables for own, theirs in table.items()} if tables else None

    # ---- Reading -------------------------------------------------------------------------------------------------------

    def read(self, config: dict[str, Any], tensors: Arrays) -> Stored:
        """What a folder of this family holds.

        Raises ValueError, with all reasons, where config.json lacks a size or describes what minitune does not compute.
        """
        config = self.unify(config)
        old = {name: self._today(name) for name in tensors if not re.search(self.ignored, name)}
        twice = [f"{name}: there twice, also as {today}" for name, today in old.items() if name != today and today in tensors]
        tensors = {today: tensors[name] for name, today in old.items()}
        own = kind_of(self.name, config)
        head = None if own else self._class_in(config, tensors)
        kind = own or (head.kind if head else None)
        if head and kind == "classifier" and config.get("problem_type") == MULTI_LABEL:
            kind = "multi_label_classifier"
        state, misfits = self._state(tensors, kind, bool(own), self.tied(config))
        state = {name: array for name, array in state.items() if not _part_of(name, head.lacks if head else ())}
        settings, wrong = settings_from_config(config, kind, state, head.when if head else {})
        fields = self._fields(config, wrong)
        wrong += absurd(fields, tensors)
        if wrong:
            raise ValueError(f"from_pretrained: not a {self.title} model that minitune computes: " + "; ".join(wrong))
        fields |= {name: None for name, value in self.derived(fields).items() if fields[name] == value}
        inner = {name.removeprefix("backbone."): array for name, array in state.items()}
        return Stored(fields | self.found(config, inner, settings), state, kind, settings, twice + misfits)

    def _fields(self, config: dict[str, Any], wrong: list[str]) -> dict[str, Any]:
        """The config's fields that are in order; what is not is added to `wrong`."""
        fields: dict[str, Any] = {}
        for key, setting in self.sizes.items():
            value = setting.default if config.get(key) is None else config[key]
            if value is REQUIRED:
                wrong.append(f"{key} is missing")
            elif value is not setting.default and not setting.expected.holds(value):
                wrong.append(f"{key} is {short(value)}, expected {setting.expected.words}")
            elif fields.setdefault(setting.own, value) != value:
                wrong.append(f"{key} is {short(value)}, expected {fields[setting.own]!r}: minitune has one {setting.own}")
        wrong += [f"{key} is {short(config[key])}, expected {value!r}" for key, value in self.fixed.items()
                  if config.get(key, value) != value]
        problem = config.get("problem_type")
        if problem not in (None, "single_label_classification", MULTI_LABEL):
            wrong.append(f"problem_type is {short(problem)}, expected single- or {MULTI_LABEL}. There is no regression head")
        known = [*self.architectures, *(head.architecture for head in self.heads)]
        if config.get("model_type") == self.name and _architecture(config) not in (None, *known):
            wrong.append(f"{short(_architecture(config))} is a class that minitune has not; it has {', '.join(known)}")
        return fields

    def _today(self, name: str) -> str:
        end = next((end for end in self.renamed if name.endswith(end)), "")
        return name.removesuffix(end) + self.renamed.get(end, "")

    def _class_in(self, config: dict[str, Any], tensors: Arrays) -> Head | None:
        """The class whose head the arrays hold; those that share names are told apart by config.json."""
        def fit(head: Head) -> tuple[int, bool]:
            back = _inverse(head.names)
            present = sum(translate(name, back) is not None for name in tensors)
            return present, head.architecture == _architecture(config)

        best = max(self.heads, key=fit)
        return best if any(fit(best)) else None

    def _state(self, tensors: Arrays, kind: str | None, own: bool, tied: dict[str, str]) -> tuple[Arrays, list[str]]:
        """Arrays in minitune's names, and what is wrong with single ones."""
        backbone, heads = "" if kind is None else "backbone.", self.head_names(kind)
        names, outside = _inverse(self.names), _inverse(self.outside)
        inner: Arrays = {}
        outer: Arrays = {}
        misfits = []
        for full, array in tensors.items():
            bare = full.removeprefix(self.prefix)
            part = None if own and bare == full else translate(bare, names)    # ours always have the prefix
            part = part or translate(full, outside)
            head = None if kind is None else full if heads is None else translate(full, _inverse(heads))
            if array.dtype.kind != "f":
                misfits.append(f"{full}: {array.dtype} numbers, expected floating point")
            elif full in tied:
                misfits += self._untied(full, tied[full], tensors)
            elif part in inner:
                misfits.append(f"{full}: there twice, with {self.prefix!r} before its name and without")
            elif part is not None:
                inner[part] = array.T if bare.endswith(self.transposed) else array
            elif head is not None:
                outer[head] = array
            else:
                misfits.append(f"{full}: unknown")
        return {backbone + name: array for name, array in self.split(inner, misfits).items()} | outer, misfits

    def _untied(self, copy: str, original: str, tensors: Arrays) -> list[str]:
        """A matrix that is written a second time must be the first: minitune has one for both."""
        first = tensors.get(original, tensors.get(original.removeprefix(self.prefix)))
        if first is not None and np.array_equal(first, tensors[copy], equal_nan=True):
            return []
        return [f"{copy}: is not {original}, to which minitune ties it. Was the model trained with tie_word_embeddings=false?"]


# ---- What every family shares --------------------------------------------------------------------------------------------

def translate(name: str, table: dict[str, str]) -> str | None:
    """The other name of a parameter, by itself or as part of its module; None where the table has neither.

    >>> translate("blocks.11.mlp.up.weight", {"blocks.{i}.mlp.up": "h.{i}.mlp.c_fc"})
    'h.11.mlp.c_fc.weight'
    """
    number = re.search(r"\.(0|[1-9][0-9]*)\.", name)
    generic = name if number is None else f"{name[: number.start()]}.{{i}}.{name[number.end():]}"
    module, _, part = generic.rpartition(".")
    other = table.get(generic) or (f"{table[module]}.{part}" if part in ("weight", "bias") and module in table else None)
    return other if other is None or number is None else other.replace("{i}", number[1])


def _inverse(table: dict[str, str]) -> dict[str, str]:
    return {theirs: own for own, theirs in table.items()}


def _part_of(name: str, parts: tuple[str, ...]) -> bool:
    return name.removeprefix("backbone.").startswith(tuple(part + "." for part in parts))


def _architecture(config: dict[str, Any]) -> Any:
    """Hugging Face's class, where config.json names one."""
    listed = config.get("architectures")
    return listed[0] if isinstance(listed, list) and listed else None


def own_type(family: str, kind: str | None) -> dict[str, Any]:
    """model_type and architectures of a folder that no class of Hugging Face reads."""
    name = "_".join(["minitune", family] + ([kind] if kind else []))
    return {"model_type": name, "architectures": ["Minitune" + (kind or family).title().replace("_", "")]}


def kind_of(family: str, config: dict[str, Any]) -> str | None:
    """The kind of head that a model type of our own names."""
    prefix, model_type = f"minitune_{family}_", str(config.get("model_type"))
    return model_type.removeprefix(prefix) if model_type.startswith(prefix) else None


def settings_to_config(settings: dict[str, Any]) -> dict[str, Any]:
    """A head's settings as keys of config.json: the labels where Hugging Face has them, others under minitune_..."""
    labels = settings.get("labels", ())
    named = {"id2label": {str(i): name for i, name in enumerate(labels)},
             "label2id": {name: i for i, name in enumerate(labels)}} if labels else {}
    return named | {f"minitune_{key}": value for key, value in settings.items() if key != "labels"}


def settings_from_config(config: dict[str, Any], kind: str | None, state: Arrays,
                         fixed: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(settings of a head, complaints); `fixed` are those of Hugging Face's class, where it is one."""
    settings, wrong = {}, []
    for key in KINDS[kind]:
        value = config.get(f"minitune_{key}", fixed.get(key, OWN_DEFAULTS.get(key)))
        if key == "labels":
            settings[key], reasons = labels_from_config(config, state.get("head.weight"))
            wrong += reasons
        elif key in fixed and value != fixed[key]:
            wrong.append(f"minitune_{key} is {short(value)}, where Hugging Face's class has {fixed[key]!r}")
        elif value is not None:
            settings[key] = value
    return settings, wrong


def labels_from_config(config: dict[str, Any], weight: np.ndarray | None) -> tuple[list[str], list[str]]:
    """(names of the labels, complaints); LABEL_0, LABEL_1 ... where config.json gives none, as Hugging Face does.

    A name that is there twice gets its number the second time: ImageNet has two classes called crane, 134 and 517.
    """
    named = config.get("id2label")
    if named is not None and not (isinstance(named, dict) and all(isinstance(name, str) for name in named.values())):
        return [], [f"id2label is {short(named)}, expected an object of names"]
    count = len(weight) if weight is not None and weight.size and weight.ndim else len(named or "no")
    if count == 1:
        return [], ["the head has one output, as for regression, which minitune has not"]
    if named is None:
        return [f"LABEL_{i}" for i in range(count)], []
    if set(named) != {str(i) for i in range(count)}:
        return [], [f"the head has {count} classes, id2label names {short(sorted(named))}"]
    first: dict[str, int] = {}
    names = [named[str(i)] for i in range(count)]
    return [name if first.setdefault(name, i) == i else f"{name} ({i})" for i, name in enumerate(names)], []


def absurd(fields: dict[str, Any], tensors: Arrays) -> list[str]:
    """Complaints about sizes that take memory before any array is compared, and that the arrays of a folder cannot have."""
    numbers = sum(array.size for array in tensors.values())
    limits = {"n_layer": (len(tensors), "the folder holds {:,} arrays"),            # a layer has an array or more
              "n_embd": (numbers, "all arrays together hold {:,} numbers"),         # these two: Llama's table of angles
              "head_size": (numbers, "all arrays together hold {:,} numbers")}
    return [f"{name} is {short(fields[name])}, but {words.format(limit)}" for name, (limit, words) in limits.items()
            if type(fields.get(name)) is int and fields[name] > limit]


def no_place(title: str, names: list[str]) -> str:
    """The error for arrays that a format cannot hold."""
    if any("standardized" in name.split(".") for name in names):
        return f"save_pretrained: {title}'s format has no place for a standardised head. Fold it first: tune.fold(model)"
    return (f"save_pretrained: {title}'s format has no place for " + ", ".join(sorted(names)[:6]) +
            (" ..." if len(names) > 6 else "") + ". Are adapters still in the model? Merge them first: tune.merge(model)")


def short(value: Any) -> str:
    """A value in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
