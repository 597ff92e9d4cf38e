"""What papers report, as data: each figure with its place, its data set, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass

ULMFIT = "Howard and Ruder 2018, Universal language model fine-tuning for text classification, arXiv 1801.06146v5"
VALIDATION = ("validation error of one model, reading forwards, on the tenth of the training texts that was held out; a "
              "classifier tuned for 50 epochs")
FACTOR = "how many times as many labels training from scratch needs for the validation error of 100 labels"
DATA = {"imdb": "IMDb", "trec": "TREC-6", "ag_news_22k": "AG"}      # our data sets, and what the paper calls them
TRAINING_TEXTS = {"IMDb": 25_000, "TREC-6": 5_500, "AG": 120_000}   # of its table 1


@dataclass(frozen=True)
class Published:
    """One figure of a paper: where it stands, the data set by the paper's name, the row, and the value with its unit."""

    paper: str
    place: str
    data: str
    row: str
    value: float
    unit: str
    measured: str


TABLES: dict[str, dict[str, tuple[float, float, float]]] = {        # errors in % on IMDb, TREC-6 and AG; the whole recipe last
    "ulmfit.table4": {"without pretraining": (5.63, 10.67, 5.52), "with pretraining": (5.00, 5.69, 5.38)},
    "ulmfit.table5": {"vanilla LM": (5.98, 7.41, 5.76), "AWD-LSTM LM": (5.00, 5.69, 5.38)},
    "ulmfit.table6": {"no LM fine-tuning": (6.99, 6.38, 6.09), "full": (5.86, 6.54, 5.61), "full + discr": (5.55, 6.36, 5.47),
                      "full + discr + stlr": (5.00, 5.69, 5.38)},
    "ulmfit.table7": {"from scratch": (9.93, 13.36, 6.81), "full": (6.87, 6.86, 5.81), "full + discr": (5.57, 6.21, 5.62),
                      "last": (6.49, 16.09, 8.38), "chain-thaw": (5.39, 6.71, 5.90), "freez": (6.37, 6.86, 5.81),
                      "freez + discr": (5.39, 5.86, 6.04), "freez + stlr": (5.04, 6.02, 5.35),
                      "freez + cos": (5.70, 6.38, 5.29), "freez + discr + stlr": (5.00, 5.69, 5.38)},
}
FACTORS: dict[str, dict[str, float]] = {        # of Figure 3; the text gives none for TREC-6: both settings do about alike
    "supervised": {"IMDb": 10, "AG": 20}, "semi-supervised": {"IMDb": 100, "AG": 50}}
FACTORS_AT = 100                                # the labels that these are of
CURVES: dict[str, tuple[tuple[str, str], ...]] = {      # Figure 3 at 100 labels: (which is lower, than which)
    data: (("supervised", "scratch"), ("semi-supervised", "scratch"), *below) for data, below in {
        "IMDb": (("semi-supervised", "supervised"),), "TREC-6": (), "AG": (("semi-supervised", "supervised"),)}.items()}


def figures(name: str, data: str) -> tuple[Published, ...]:
    """What "ulmfit.table4" to "ulmfit.table7" and "ulmfit.figure3" report of one of our data sets, in the paper's order.

    Raises ValueError for a table or a data set that is not there, with those that are.
    """
    if name not in PUBLISHED:
        raise ValueError(f"reproduce: expected one of {', '.join(PUBLISHED)}, got {name!r}")
    if data not in DATA:
        reported = ", ".join(f"{ours!r} ({there})" for ours, there in DATA.items())
        raise ValueError(f"reproduce: {name} reports the data sets {reported}; the one given is {data!r}. Load one of those by "
                         "its name")
    return tuple(figure for figure in PUBLISHED[name] if figure.data == DATA[data])


def _published() -> dict[str, tuple[Published, ...]]:
    tables = {name: tuple(Published(ULMFIT, f"Table {name[-1]}, section 5", data, row, value, "%", VALIDATION)
                          for row, values in rows.items() for data, value in zip(DATA.values(), values))
              for name, rows in TABLES.items()}
    curve = tuple(Published(ULMFIT, "Figure 3 and the text beside it, section 5", data, row, value, "times", FACTOR)
                  for row, values in FACTORS.items() for data, value in values.items())
    return tables | {"ulmfit.figure3": curve}


PUBLISHED = _published()
