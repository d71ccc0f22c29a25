"""Figures are data: every record is whole, the page shows it, and README prints no other number."""

import json
import math
import re
import subprocess
import sys

import pytest
from _examples import load_example
from _pages import DOCS

sys.path.insert(0, str(DOCS / "_ext"))
sys.path.append(str(DOCS.parent / "examples"))

import _ran
import faces
import figures
import tables

pytestmark = pytest.mark.docs

README = (faces.ROOT / "README.md").read_text()
RECORDS = dict(figures.records())
ROW = re.compile(r"^\| (.*?) <!-- (\S+) --> \| (.*?) \| (.*?) ?\| (\S+) \|$", re.M)
NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?")


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_whole(name):
    record = RECORDS[name]
    fields = set(record)
    assert set(figures.REQUIRED) <= fields <= {*figures.REQUIRED, *figures.OPTIONAL}
    assert re.fullmatch(r"[0-9a-f]{7,40}", record["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert record["versions"].keys() >= {"jax", "numpyro", "lapilli"}
    for path in record["measures"]:
        assert (faces.ROOT / path).exists(), f"{name} measures {path}, which is no more"
    if isinstance(record["value"], dict):
        assert set(record.get("spread", {})) <= set(record["value"])
        claim = record.get("claim", {})
        assert isinstance(claim, str) or claim.keys() <= record["value"].keys()


def git(*arguments, folder=faces.ROOT):
    """What git says of a folder; None where there is no git, or nothing to say."""
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@pytest.mark.skipif(
    git("rev-parse", "--is-shallow-repository") != "false", reason="needs the whole history"
)
def test_commits_of_records_are_in_the_history():
    """A branch that is rebased or squashed loses the commit at which a figure was measured: merge it."""
    commits = {record["commit"] for record in RECORDS.values()}
    lost = [c for c in commits if git("merge-base", "--is-ancestor", c, "HEAD") is None]
    assert lost == []


def test_names_are_of_their_own():
    names = [r["name"] for part in figures.subjects().values() for r in part["figures"]]
    assert len(names) == len(set(names)) > 60


def test_the_page_shows_every_record():
    page = figures.text()
    for name, record in RECORDS.items():
        (row,) = figures.rows({"figures": [record]}, "")
        assert row[0] == figures.escaped(record["what"]) and f"| {row[0]} |" in page, name
        assert record["command"] in page and record["commit"] in row[3], name
        numbers = NUMBER.findall(figures.figure(record))
        assert is_within(numbers, NUMBER.findall(row[1])), name
    assert page.count("\n| ") == len(RECORDS) + 2 * len(figures.subjects())


def test_how_many_seeds_is_told_from_which():
    said = [figures.seeds(s) for s in (5, 1, "5", "0 / 1")]
    assert said == ["5 seeds", "one seed", "seed 5", "seeds: 0 / 1"]


def is_within(some, others):
    """All of some are among the others, in their order."""
    rest = iter(others)
    return all(number in rest for number in some)


def wrong_cells(readme):
    """Rows of README's table of figures with a number that its record does not have there."""
    found = []
    for what, name, value, claim, date in ROW.findall(readme):
        record = RECORDS[name]
        said = f"{figures.figure(record)} {record.get('note', '')}"
        beside = f"{figures.beside(record)} {record.get('note', '')}"
        pairs = ((what, record["what"]), (value, said), (claim, beside), (date, record["date"]))
        ok = all(is_within(NUMBER.findall(a), NUMBER.findall(b)) for a, b in pairs)
        found += [] if ok else [name]
    return found


def test_numbers_of_the_readme_are_those_of_the_records():
    table = README.partition("## What the promise is worth")[2].partition("\n## ")[0]
    assert len(ROW.findall(README)) == table.count("\n| ") - 1 >= 4
    assert wrong_cells(README) == []


@pytest.mark.parametrize(
    "old, new",
    [("-638.251", "-638.252"), ("NumPyro 7.42", "NumPyro 7.43"), ("8 states", "9 states")],
)
def test_another_number_in_the_readme_is_found(old, new):
    changed = README.replace(old, new)
    assert bool(wrong_cells(changed)) == (changed != README)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 110


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", README)
    assert len(links) > 20
    assert [link for link in links if not (faces.ROOT / link).exists()] == []
    folders = ("tutorials", "start")
    pages = {str(f.relative_to(faces.ROOT)) for part in folders for f in (DOCS / part).glob("*.md")}
    assert pages - set(links) == set(), "README links every page of these folders"


def test_what_the_readme_counts():
    biased = [name for name, make in tables.STRATEGIES.items() if make().is_biased]
    said = f"{len(tables.STRATEGIES)} estimators by name, those that are biased ({len(biased)})"
    assert said in README
    assert f"| objectives | {len(tables.OBJECTIVES)}, with direction and bias" in README


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose `library/` changes after the first commit, and whose script's words do; the commits."""
    if git("init", "-q", folder=tmp_path) is None:
        pytest.skip("needs git")
    (tmp_path / "library").mkdir()
    commits = []
    for text in ("one", "two"):
        (tmp_path / "library" / "code.py").write_text(f"def what():\n    return '{text}'\n")
        script = f'''"""{text}"""\n\ndef same():  # {text}\n    """{text}"""\n    return 1\n'''
        (tmp_path / "script.py").write_text(script)
        git("add", ".", folder=tmp_path)
        git("commit", "-q", "-m", text, folder=tmp_path)
        commits.append(git("rev-parse", "HEAD", folder=tmp_path))
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    forget()
    yield commits
    forget()


def forget():
    """What is known of files that change in a test."""
    figures.changed.cache_clear()
    _ran._present.cache_clear()
    _ran._of_file.cache_clear()


def test_a_figure_that_is_older_than_its_code_is_marked(repository):
    record = next(iter(RECORDS.values())) | {"measures": ["script.py", "library"]}
    first, last = (figures.origin(record | {"commit": commit}, "") for commit in repository)
    assert first.endswith("**Older than its code**: `library`")
    assert "Older" not in last
    same = record | {"commit": repository[0], "measures": ["script.py"]}
    assert "Older" not in figures.origin(same, "")


LIBRARY = '''"""Text."""
from __future__ import annotations
import math
SCALE = 2.0
def used(x):
    """Twice x."""
    if x < 0:
        raise ValueError("x is negative")
    return SCALE * helper(x)
def helper(value):
    return math.sqrt(value)
def unused(x):
    return x
class Model:
    rate = 1.0
    def run(self):
        return used(self.rate)
    def rest(self):
        return 0
'''
SAME = {
    "docstring": ("Twice x.", "x, twice."),
    "words of an error": ("x is negative", "x < 0. Take another."),
    "annotation": ("def used(x):", "def used(x: float) -> float:"),
    "name of a definition": ("helper", "root"),
    "name of a variable": ("math.sqrt(value)", "math.sqrt(y)", "helper(value)", "helper(y)"),
    "what has not run": ("return x\n", "return -x\n", "return 0\n", "return 1\n"),
    "what is new": ("class Model:", "def more():\n    return 1\nclass Model:"),
}
OTHER = {
    "function": ("SCALE * helper", "SCALE + helper"),
    "what it calls of others": ("math.sqrt", "math.exp"),
    "condition": ("x < 0", "x < 1"),
    "constant": ("SCALE = 2.0", "SCALE = 3.0"),
    "class": ("rate = 1.0", "rate = 2.0"),
    "method": ("used(self.rate)", "used(-self.rate)"),
}


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """A file of code, and the digests of what ran of it."""
    file = tmp_path_factory.mktemp("library") / "code.py"
    file.write_text(LIBRARY)
    lines, space = {}, {"__name__": "code"}
    exec(compile(LIBRARY, str(file), "exec"), space)
    stop = _ran.watch(lines)
    space["Model"]().run()
    stop()
    return file, _ran.ran(lines, file.parent)


@pytest.mark.parametrize("case", [*SAME, *OTHER])
def test_a_figure_is_older_when_something_that_it_ran_has_changed(case, run_once):
    file, digests = run_once
    words = (SAME | OTHER)[case]
    text = LIBRARY
    for old, new in zip(words[::2], words[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    forget()
    record = {"commit": "0" * 40, "measures": ["."], "ran": {".": digests}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "ROOT", file.parent)
        assert figures.older(record) == (["."] if case in OTHER else [])
    forget()


def test_code_that_moves_to_another_file_is_the_same(run_once):
    file, digests = run_once
    file.write_text(LIBRARY.replace("def helper(value):\n    return math.sqrt(value)\n", ""))
    beside = file.with_name("beside.py")
    beside.write_text("import math\ndef helper(value):\n    return math.sqrt(value)\n")
    forget()
    assert not _ran.is_older(digests, file.parent)
    beside.unlink()
    forget()
    assert _ran.is_older(digests, file.parent)


def test_what_moved_is_told_beside_its_spread():
    command = load_example("figures", faces.ROOT / ".ci")
    before = {"value": {"a": 1.0, "b": 2.0, "c": "x"}, "spread": {"a": 0.1}}
    after = {"value": {"a": 1.05, "b": 2.5, "c": "x"}, "spread": {"a": 0.02}}
    assert list(command.moved(before, after)) == ["b 2.0 -> 2.5, without a spread"]
    after["value"]["a"] = 1.2
    assert list(command.moved(before, after))[0] == "a 1.0 -> 1.2, spread 0.1"
    assert command.seconds({"time": "2 minutes of processor time"}) == 120
    assert command.seconds({"time": "half an hour"}) == command.seconds({}) == math.inf


def test_without_git_or_the_commit_nothing_is_said(repository, monkeypatch):
    assert figures.changed("0" * 40, ("library",)) == []

    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(figures.subprocess, "run", missing)
    assert figures.changed(repository[0], ("library",)) == []


@pytest.fixture
def writer(monkeypatch):
    """The helper of scripts, told that it is a benchmark."""
    module = load_example("_record")
    script = faces.ROOT / "benchmarks" / "language" / "vae.py"
    monkeypatch.setattr(
        sys, "argv", [str(script), "--record", "--out", "there", "--data", "/home/me/tasks"]
    )
    monkeypatch.setattr(module, "_git", lambda what, *rest: "abc1234" * (what == "rev-parse"))
    return module


def test_scripts_write_records_that_the_page_reads(writer, tmp_path):
    file = tmp_path / "things.json"
    file.write_text(json.dumps({"title": "Things", "order": 0, "figures": [{"name": "first"}]}))

    def write(value):
        writer.record_figure(
            "things/second", what="a thing", value={"a": value}, spread={"a": 0.0123}, digits=2,
            claim={"a": 1.2}, claimed_by="exact", measures=["ppl"], folder=tmp_path,
        )  # fmt: skip
        return json.loads(file.read_text())["figures"]

    assert [r["name"] for r in write(1.0)] == ["first", "second"]
    first, record = write(1.23456)  # in place of the former
    assert first == {"name": "first"}
    assert set(record) >= set(figures.REQUIRED)
    assert set(record) <= {*figures.REQUIRED, *figures.OPTIONAL}
    assert record["command"] == "python benchmarks/language/vae.py --data tasks"
    assert record["measures"] == ["benchmarks/language/vae.py", "ppl"]
    assert record["versions"].keys() == {"jax", "numpyro", "lapilli"}
    assert figures.figure(record) == "a 1.23 ± 0.01"
    assert figures.beside(record) == "exact: a 1.20"


def test_a_record_of_runs_before_has_what_they_ran_and_no_time(writer, tmp_path, monkeypatch):
    """This process has run other functions, or none."""
    file = tmp_path / "things.json"
    file.write_text(json.dumps({"title": "Things", "order": 0, "figures": []}))
    source = faces.ROOT / "ppl" / "_show.py"
    monkeypatch.setattr(writer, "_lines", {str(source): set(range(10_000))})
    options = {"what": "a thing", "value": "1", "measures": ["ppl"], "folder": tmp_path}
    own = writer.ran_so_far(["ppl"])["ppl"]
    gone = "0" * 8  # a function that was changed since
    for before in (None, {"ppl": gone + own}):
        writer.record_figure("things/one", before=before, **options)
        (record,) = json.loads(file.read_text())["figures"]
        found = {record["ran"]["ppl"][i : i + 8] for i in range(0, len(record["ran"]["ppl"]), 8)}
        assert (gone in found) is ("time" not in record) is (figures.older(record) == ["ppl"])
        assert (gone in found) is (before is not None) and own[:8] in found


def test_a_record_says_what_its_run_took_of_processors(writer, tmp_path, monkeypatch):
    file = tmp_path / "things.json"
    file.write_text(json.dumps({"title": "Things", "order": 0, "figures": []}))
    said = []
    for seconds, more in ((59.6, {}), (91.0, {}), (500.0, {}), (500.0, {"time": "once"})):
        times = (seconds - 3.0, 1.0, 1.5, 0.5, 7.0)  # user, system, the same of children; elapsed
        monkeypatch.setattr(writer.os, "times", lambda times=times: times)
        writer.record_figure(
            "things/one", what="a thing", value={"a": -1e-9}, measures=["ppl"], folder=tmp_path, **more
        )  # fmt: skip
        (record,) = json.loads(file.read_text())["figures"]
        said.append(record["time"])
    of = "of processor time"
    assert said == [f"60 seconds {of}", f"2 minutes {of}", f"8 minutes {of}", "once"]
    assert figures.figure(record) == "a 0.000"  # not -0.000


def test_medians_of_benchmarks_come_with_their_intervals():
    common = load_example("_common", faces.ROOT / "benchmarks")
    fields = common.with_intervals({"a": common.Ratio(1.0, 0.9, 1.3)})
    assert fields["value"] == {"a": 1.0}
    assert fields["spread"] == {"a": pytest.approx(0.2)}


def test_changes_that_are_not_committed_are_told(writer, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_git", lambda *arguments: "abc1234")
    record = writer.provenance(["ppl"])
    assert record["changed"] is True
    record |= {"what": "a thing", "value": "1", "name": "one"}
    assert "with changes that were not committed" in figures.origin(record, "")


def test_pitfalls_tells_right_answers_from_wrong_ones():
    pitfalls = load_example("language/pitfalls", faces.ROOT / "benchmarks")
    answers = {
        "-0.3320 +- 0.0233": True,  # within 4.5 standard errors of -0.3326
        "+0.6620 +- 0.0044": False,
        "-0.3327": True,
        "-5.2446 (a warning)": False,
        "refused: Site 'x'": False,
    }
    assert {said: pitfalls.is_right(said, "-0.3326") for said in answers} == answers
    assert not pitfalls.is_right("-118.0066", "none")


def test_a_smoke_run_is_no_figure(capsys):
    with pytest.raises(SystemExit):
        load_example("papers/particles/nile").main(["--smoke", "--record"])
    assert "full size" in capsys.readouterr().err
