"""The README's code runs, and what it shows comes out."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"<!-- example -->\n```python\n(.*?)```", README, flags=re.DOTALL)
(SHOWN,) = re.findall(r"```text\n(.*?)```", README, flags=re.DOTALL)


def masked(text):
    """Without its numbers, which differ between machines, and the progress that slow ones print."""
    told = re.sub(r"[^\r\n]*transitions[^\r\n]*(?:\r|\n)", "", text)
    return re.sub(r"[\d.]+", "#", told)


@pytest.mark.docs
@pytest.mark.filterwarnings("ignore")
def test_the_thirty_lines_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert [len(code.splitlines()) <= 30 for code in EXAMPLES] == [True]
    scope = {"__name__": "readme"}
    exec(EXAMPLES[0], scope)
    said = capsys.readouterr().out
    assert "odd summed out" in said and "certified   yes" in said
    assert masked(said) == masked(SHOWN)
    assert scope["draws"].shape == (1000, 142)
    # Of 142 rows a 90% interval holds 0.9 +- 0.025; four of these, and the model is not the truth.
    inside = (scope["low"] < scope["y"][300:]) & (scope["y"][300:] < scope["high"])
    assert 0.8 < np.mean(inside) and f"intervals hold {np.mean(inside):.0%} of 142" in said
