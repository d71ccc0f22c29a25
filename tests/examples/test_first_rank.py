"""The short scripts of `examples/`: of one shape, without helpers, and at smoke size they say what they are to say."""

import ast
import re

import numpy as np
import pytest
from _examples import EXAMPLES, load_example
from _pages import DOCS

SCRIPTS = sorted(f for f in EXAMPLES.glob("*.py") if not f.name.startswith("_"))
SHAPE = ["load", "solve", "draw", "main"]  # data, call (behind the program), figure, and all of it
HEADS = ("What it shows:", "Data:", "Expected:", "Run time:")

# What holds at smoke size already, where something does; the rest is told by the full run that a docstring describes.
HOLDS = {
    "change_point": lambda r: abs(r["total"] - 1) < 1e-4 and 1895 < r["year"] < 1903,
    "groups": lambda r: r["new"] > r["known"],
    "labels": lambda r: r["right"] > 0.85,
    "quickstart": lambda r: r["gain"] > 100 and abs(r["low"] - 1.46) < 0.2 and abs(r["high"] - 4.91) < 0.2,
    "right_posterior": lambda r: r["no correlation"] and not r["exact"],
}  # fmt: skip


@pytest.fixture(params=SCRIPTS, ids=lambda f: f.stem)
def script(request):
    return request.param, ast.parse(request.param.read_text())


def imported(tree):
    """Names of the modules that a script imports, wherever."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_they_are_about_twenty():
    assert 18 <= len(SCRIPTS) <= 26


def test_they_are_short_and_need_no_other_file(script):
    file, tree = script
    assert len(file.read_text().splitlines()) <= 150
    roots = [name.partition(".")[0] for name in imported(tree)]
    assert [name for name in roots if name in ("", "sys") or name.startswith("_")] == []


def test_they_have_one_shape(script):
    file, tree = script
    functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    assert [name for name in functions if name in SHAPE] == SHAPE
    doc = ast.get_docstring(tree)
    assert all(f"\n{head} " in doc for head in HEADS)
    assert f"python examples/{file.name} [--smoke] [--out {file.stem}.png]" in doc


def test_every_expectation_is_of_a_script():
    assert HOLDS.keys() <= {f.stem for f in SCRIPTS}


def test_pages_name_all_of_them_and_none_that_is_not_there():
    text = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    named = set(re.findall(r"\bexamples/[\w/]+\.py", text))
    assert {f"examples/{f.name}" for f in SCRIPTS} <= named
    assert [name for name in sorted(named) if not (EXAMPLES.parent / name).exists()] == []


@pytest.mark.slow  # a compilation or several each
@pytest.mark.filterwarnings("ignore:infer. these draws are NOT certified")  # of so few
@pytest.mark.parametrize("name", [f.stem for f in SCRIPTS])
def test_they_run(name, tmp_path, monkeypatch, capsys):
    from matplotlib.image import imread

    monkeypatch.setenv("MPLBACKEND", "agg")
    out = tmp_path / "figure.png"
    numbers = load_example(name).main(smoke=True, out=out)
    assert numbers and all(np.isfinite(x) for x in numbers.values())
    assert HOLDS.get(name, lambda numbers: True)(numbers), numbers
    assert capsys.readouterr().out.strip()
    picture = imread(out)
    assert min(picture.shape[:2]) > 150 and picture[..., :3].std() > 0.01
