"""minitune finetune: a classifier, or a model that writes, from data of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..data import Dataset
from ..experiments import Finetuned, Finetuning, finetune
from ..experiments.baseline import require_scikit_learn, tfidf
from ..experiments.finetuning import DEFAULT_BASE, TUNING, base_model
from ..formats.folder import write_text
from ..models.head import POOLINGS
from .arguments import add_data, add_device, natural, positive
from .evaluate import draw_history, measure
from .model_card import model_card
from .run_folder import add_run, begin, finish, open_run


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("finetune", help="a model for data of your own", description=(
        "Fine-tunes a pre-trained model on DATA: texts with labels give a classifier; texts, prompts with completions, and "
        "chats give a model that writes. What does best on validation rows is kept, and measured on test rows."))
    add_data(parser, optional=True)
    add_run(parser, "runs/finetune")
    default = Finetuning()
    parser.add_argument("--base", type=Path, default=Path(DEFAULT_BASE), metavar="DIR", help="the model to start from: a run "
                        "of pretrain or finetune, or a folder in Hugging Face's GPT-2 form (default: "
                        f"{DEFAULT_BASE}, which comes with the package: a small GPT that has read books)")
    parser.add_argument("--method", choices=tuple(TUNING), default=default.method,
                        help=f"what trains (default: {default.method})")
    parser.add_argument("--epochs", type=positive, default=default.epochs, metavar="N", help=f"default: {default.epochs}")
    parser.add_argument("--lr", type=float, metavar="RATE", help="default: chosen by method and width")
    parser.add_argument("--batch-size", type=positive, default=default.batch_size, metavar="N",
                        help=f"rows read at once (default: {default.batch_size})")
    parser.add_argument("--accumulate", type=positive, default=1, metavar="N", help="batches of one step (default: 1)")
    parser.add_argument("--patience", type=positive, default=default.patience, metavar="N",
                        help=f"stop after so many epochs without a better one (default: {default.patience})")
    parser.add_argument("--pooling", choices=tuple(POOLINGS), default=default.pooling,
                        help="how a classifier sums up a text (default: for a GPT the mean of standardised features, else what "
                             "fits the model)")
    parser.add_argument("--ema", type=float, metavar="DECAY", help="keep an average of the weights, as with 0.99")
    parser.add_argument("--seed", type=natural, default=0, metavar="N")
    add_device(parser)
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Reads, tunes, measures, records."""
    options, dataset = open_run(options)
    print(f"Base: {options.base}")
    base = base_model(options.base).to(options.device, options.dtype)
    if not options.resume:
        begin(options)
    settings = Finetuning(options.method, options.epochs, options.lr, options.batch_size, options.accumulate, options.patience,
                          options.pooling, options.ema, options.seed)
    made = finetune(dataset, base, settings, options.out, options.resume)
    print(f"\n{made.report}\n")
    for note in made.notes:
        print(f"  - {note}")
    made.model.save_pretrained(options.out / "model")
    draw_history(options.out, f"fine-tuning on {dataset.name}")
    split = next(name for name in ("test", "valid", "train") if name in dataset.splits)
    results, text = measure(made.model, dataset, split, options.out)
    print(f"\n{text}{_baseline(dataset, split, results)}")
    finish(options.out, dataset, {**results, "best_step": made.trainer.best.step if made.trainer.best else None,
                                  "notes": made.notes})
    write_text(options.out / "model" / "README.md", _card(dataset, made, settings, text, options.base))
    use = "predict" if dataset.labels else "generate"
    print(f"\nThe model is in {options.out / 'model'}. Use it with\n  minitune {use} {options.out} \"a text of yours\"")


def _baseline(dataset: Dataset, split: str, results: dict[str, Any]) -> str:
    """The plain baseline beside a classifier, where scikit-learn is there to compute it."""
    if dataset.kind != "classification" or split != "test" or "valid" not in dataset.splits:
        return ""
    try:
        require_scikit_learn()
    except ImportError:
        return ""
    train, valid, test = dataset.train, dataset.valid, dataset.test
    try:
        found = tfidf(train.texts, train.labels, valid.texts, valid.labels, test.texts)
    except ValueError as odd:                   # texts without a word, for one
        return f"\nThe plain baseline could not be measured: {odd}"
    results["baseline_accuracy"] = float((found.predictions == test.labels).mean())
    return f"\nThe plain baseline, TF-IDF and logistic regression: accuracy {results['baseline_accuracy']:.1%}"


def _card(dataset: Dataset, made: Finetuned, settings: Finetuning, results: str, base: str | Path) -> str:
    trained, total = made.report.trainable, made.report.total
    facts = {"base": Path(base).name,
             "trained": f"{trained:,} of {total:,} parameters ({trained / total:.2%}) by {settings.method}",
             "settings": settings}
    last = ('classifier = mt.TextClassifier.load("model")\nprint(classifier.predict(["a text of yours"]))' if dataset.labels
            else 'model = mt.models.from_pretrained("model")\nprint(model.generate("a text of yours"))')
    use = f"import minitune as mt\n\n{last}"
    return model_card(f"{'A classifier' if dataset.labels else 'A model that writes'}, from {dataset.name}", dataset, facts,
                      results, use)
