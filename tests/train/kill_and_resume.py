"""kill -9 at random moments of a training: it must resume and end bit for bit as the uninterrupted one.

    python tests/train/kill_and_resume.py --kills 30

Every kill has a training of its own: it is started, killed after a random part of its time, wherever it is then, and started
again with resume. Prints a line a kill and ends with exit code 1 where one differs.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 60


def train(out: Path) -> None:
    """The training that is killed: dropout, LoRA, accumulation, an average, checkpoints at every step."""
    import numpy as np

    import minitune as mt

    draw = np.random.default_rng(0)
    documents = [draw.integers(1, 50, draw.integers(4, 16)).tolist() for _ in range(70)]
    labels = [int(sum(document) % 2) for document in documents]
    train, valid = (mt.data.ClassificationSet(documents[part], labels[part], 16) for part in (slice(50), slice(50, None)))
    mt.seed(0)
    model = mt.models.Classifier(mt.models.GPT(mt.models.GPTConfig(50, 16, 2, 2, 32, dropout=0.2)), ["even", "odd"])
    mt.tune.apply(model, mt.tune.LoRAConfig(r=2, lora_alpha=4))
    trainer = mt.train.Trainer(model, train, valid, steps=STEPS, lr=1e-2, batch_size=6, accumulate=2, evaluate_every=7,
                               checkpoint_every=1, ema=0.9, out=out, progress=False)
    print("begun", flush=True)
    trainer.fit(resume=True)
    digest = hashlib.sha256()
    for name, array in model.state_dict().items():
        digest.update(name.encode() + array.tobytes())
    rows = [{name: value for name, value in row.items() if name not in ("tokens_per_second", "peak_mb")}
            for row in trainer.history.rows]
    print(json.dumps({"weights": digest.hexdigest(), "history": rows, "best": trainer.best.step,
                      "random": dict(mt.random.counters)}), flush=True)


def start(out: Path) -> subprocess.Popen:
    """A training that has been set up and is about to begin."""
    child = subprocess.Popen([sys.executable, __file__, "--train", str(out)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "begun\n"
    return child


def finish(out: Path) -> tuple[str, float]:
    """What a training that is left alone ends with, and how many seconds it took."""
    child, begin = start(out), time.perf_counter()
    result, _ = child.communicate(timeout=120)
    assert child.returncode == 0 and result
    return result, time.perf_counter() - begin


def kill_and_resume(kills: int, seed: int = 0) -> list[str]:
    """Kills so many trainings; returns a line for each that did not end as the uninterrupted one."""
    draw, differ = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        expected, seconds = finish(Path(folder) / "whole")
        for kill in range(kills):
            out, delay = Path(folder) / str(kill), draw.uniform(0, seconds)
            child = start(out)
            time.sleep(delay)
            child.kill()
            child.wait()
            child.stdout.close()
            written = sorted(file.stem for file in (out / "checkpoints").glob("*.safetensors"))
            same = finish(out)[0] == expected
            where = written[-1] if written else "no step yet"
            line = f"kill {kill + 1:2} after {delay:5.2f} s of {seconds:.2f}, at {where}: {'bit-equal' if same else 'DIFFERS'}"
            print(line, flush=True)
            differ += [] if same else [line]
            shutil.rmtree(out)
    return differ


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, help="(for the script itself)")
    options = parser.parse_args()
    if options.train:
        train(options.train)
    else:
        sys.exit(1 if kill_and_resume(options.kills, options.seed) else 0)
