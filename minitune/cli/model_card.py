"""model_card: what a model is, what it was trained on, how well it does; README.md of its folder."""

from __future__ import annotations

from typing import Any

from ..data import Dataset


def model_card(title: str, dataset: Dataset, facts: dict[str, Any], results: str, use: str) -> str:
    """The text of a card: a table of facts, the results as they were printed, how to use the model, its limits."""
    rows = {"made from": f"{dataset.name}: " + ", ".join(f"{name} {len(split):,}" for name, split in dataset.splits.items()),
            "digest of the data": dataset.fingerprint, **facts}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    notes = "\n".join(f"- {note}" for note in dataset.notes) or "- none"
    cite = f"\nTexts: {dataset.citation}\n" if dataset.citation else ""
    return f"""# {title}

| | |
|---|---|
{table}
{cite}
## Results

```
{results}
```

## About the data

{notes}

## Use

```python
{use}
```

## Limits

The model knows what stands in its training texts, with their errors and one-sidedness. Results hold for texts like these;
figures from few test rows are rough. Look at its answers before you rely on them.
"""
