"""The README's Python runs as it stands, and its commands exist."""

import re
from pathlib import Path

from own_data import ship

from minitune.cli import make_parser
from minitune.cli.demo import default_out
from minitune.experiments import Pretraining, pretrain

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
TINY = Pretraining(vocab_size=400, block_size=16, n_layer=1, n_head=2, n_embd=16, steps=2, batch_size=4, held_out=2)


def test_the_code_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    from minitune.data import load
    monkeypatch.chdir(tmp_path)
    pretrain(load("pydocs"), "runs/demo/model", TINY, progress=False)       # what `minitune demo` leaves there, but tiny
    ship(Path("runs/demo/model"), tmp_path / "shipped", monkeypatch)
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "['sea']" in printed or "['wood']" in printed
    assert "'error'" in printed and "merged 6 adapted layers" in printed
    assert Path("runs/my_classifier/model.safetensors").exists()


def test_the_demo_writes_to_the_folder_that_the_code_reads():
    assert default_out(make_parser().parse_args(["demo"])) / "model" == Path("runs/demo/model")
