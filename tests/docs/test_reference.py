"""Nothing is missing from the generated pages of the site, and links between pages lead somewhere."""

import inspect
import json
import operator
import re
import sys

import pytest
from _pages import DOCS
from _search_index import SearchIndex

sys.path.insert(0, str(DOCS / "_ext"))

import faces
import gallery
import messages
import tables
import words
from message_text import plain

import lapilli.inference
from lapilli.inference.particles.resampling import RESAMPLERS
from lapilli.ppl.strategies._registry import STRATEGIES

pytestmark = pytest.mark.docs

HAND_WRITTEN = [
    f for f in DOCS.rglob("*.md") if f.relative_to(DOCS).parts[0] not in ("tables", "api")
]


@pytest.fixture(scope="module")
def reference():
    """The generated pages, as one text."""
    pytest.importorskip("docutils", reason="the reference needs the extra docs")
    pytest.importorskip("sphinx", reason="the reference needs the extra docs")
    import reference

    return "\n".join(reference.pages().values())


@pytest.mark.parametrize("face", faces.faces())
def test_every_public_name_is_in_the_reference(face, reference):
    missing = [
        name
        for name in faces.public(face)
        if not re.search(rf"^\.\. auto\w+:: lapilli\.{re.escape(face)}\.{name}$", reference, re.M)
    ]
    assert faces.public(face) and not missing


@pytest.mark.parametrize(
    ("face", "function", "field"),
    [
        ("inference", "smc", "log_evidence"),
        ("inference.particles", "islands", "log_evidence"),
        ("inference.diagnostics", "gradient_report", "seconds"),
    ],
)
def test_results_are_in_the_reference_without_being_names(face, function, field, reference):
    import reference as module

    (result,) = module.returned(getattr(faces.load(face), function))
    assert result.__name__ not in faces.places()
    assert field in result.__doc__
    assert f".. autoclass:: {result.__module__}.{result.__name__}\n" in reference


def test_every_package_with_a_map_is_a_face():
    """A sub-namespace that a map lists is one of the reference's places."""
    below = {
        f"{face}.{name}"
        for face in faces.MAPPED
        for name in faces.load(face).__all__
        if inspect.ismodule(getattr(faces.load(face), name))
    }
    assert below <= set(faces.faces())


def test_the_table_of_strategies_has_every_name():
    text = tables.texts()["strategies.md"]
    assert [name for name in STRATEGIES if f'`"{name}"`' not in text] == []
    biased = [name for name, make in STRATEGIES.items() if make().is_biased]
    assert len(re.findall(r"\*\*biased\*\*", text)) == len(biased) > 0


def test_the_table_of_objectives_has_every_one():
    """With a direction that its docstring does not contradict."""
    assert set(tables.OBJECTIVES) == set(tables.objectives())
    for name, (direction, *_) in tables.OBJECTIVES.items():
        assert tables.documented_direction(name) in (direction, None), name


def test_the_table_of_schemes_has_every_one():
    text = tables.texts()["schemes.md"]
    assert [name for name in RESAMPLERS if f'`"{name}"`' not in text] == []
    assert all(row[1] for row in tables.scheme_rows())


def test_every_example_has_a_card():
    text = gallery.text()
    for script in gallery.scripts():
        assert f"`python {script.relative_to(faces.ROOT)}" in text, script
    assert {f.parent.name for f in gallery.scripts()} - {"examples"} <= set(gallery.TITLES)


def test_every_example_that_draws_has_a_picture_that_says_what_wrote_it():
    """Some scripts of papers print a table and no more."""
    made = json.loads((gallery.PICTURES / "made.json").read_text())
    assert {f.stem for f in gallery.PICTURES.glob("*.png")} == set(made)
    draws = {
        f.stem for f in gallery.scripts() if "papers" not in f.parts or ".png" in f.read_text()
    }
    assert draws <= set(made) <= {f.stem for f in gallery.scripts()}
    assert not any("--smoke" in command for command in made.values())
    assert all((faces.ROOT / command.split()[1]).exists() for command in made.values())


def test_the_glossary_has_the_words_of_the_language():
    text = " ".join(inspect.getdoc(faces.load("ppl")).split()).partition("Words: ")[2]
    assert set(re.findall(r"\*([\w -]+)\*", text)) - {"address"} <= set(words.words())


def test_the_glossary_has_what_pages_link_to_and_names_what_there_is():
    known = {word.lower() for word in words.words()}
    pages = "".join(page.read_text() for page in HAND_WRITTEN)
    linked = {w.lower() for w in re.findall(r"\[([^\]]+)\]\((?:\.\./)?glossary\.md\)", pages)}
    assert linked - {"the glossary"} <= known
    meanings = " ".join(words.words().values())
    assert {w.lower() for w in re.findall(r"see \*([\w -]+)\*", meanings)} <= known
    for name in re.findall(r"~lapilli\.([\w.]+)", meanings):
        assert operator.attrgetter(name)(lapilli), name
    for script in re.findall(r"`(examples/[\w/.]+)`", meanings):
        assert (faces.ROOT / script).exists(), script


@pytest.mark.parametrize(
    "name",
    ["flow matching", "rectified flow", "stochastic interpolant", "Schrödinger bridge", "discrete flow matching"],
)  # fmt: skip
def test_paths_are_found_by_the_names_of_the_field(name):
    """In the reference, in the glossary, and by those who come from another library."""
    coming = (DOCS / "start" / "coming_from.md").read_text().partition("## torchcfm")[2]
    texts = (inspect.getdoc(faces.load("models.paths")), coming.partition("\n## ")[0])
    assert all(name.lower() in " ".join(text.split()).lower() for text in texts)
    assert name.lower() in {word.lower() for word in words.words()}


def test_every_how_to_stands_under_one_heading():
    text = (DOCS / "index.md").read_text()
    listed = re.findall(r"^howto/(\w+)$", text, re.M)
    assert sorted(listed) == sorted(f.stem for f in (DOCS / "howto").glob("*.md"))


def test_every_family_is_on_the_page_of_what_there_is():
    text = (DOCS / "start" / "capabilities.md").read_text().partition("## Model families")[2]
    assert [name for name in faces.load("models").__all__ if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda f: str(f.relative_to(DOCS)))
def test_links_of_pages_lead_somewhere(page):
    """Files; the builder checks headings and names."""
    text = page.read_text()
    prose = re.sub(r"(`+).*?\1", "", text)  # what is quoted links to nothing
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", prose)
    links += [f"{link}.md" for link in re.findall(r"^:link: (\S+)$", text, re.M)]
    generated = {
        "api/index.md",
        "gallery.md",
        "glossary.md",
        "bibliography.md",
        "figures.md",
        "messages.md",
    }
    lost = [
        link
        for link in links
        if not (page.parent / link).exists() and link.removeprefix("../") not in generated
    ]
    assert not lost


@pytest.mark.slow  # the whole site, in a minute or two
def test_the_site_builds(tmp_path):
    pytest.importorskip("sphinx", reason="building needs the extra docs")
    pytest.importorskip("furo", reason="building needs the extra docs")
    import subprocess

    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-n",
        "-W",
        "--keep-going",
        "-b",
        "html",
        DOCS,
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "howto/hmm.html" in (tmp_path / "llms.txt").read_text()
    pages = "".join(f.read_text() for f in tmp_path.rglob("*.html"))
    assert not re.search(
        r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)"', pages
    )  # nothing from a network
    index = SearchIndex(tmp_path)  # each message is found by any piece of it
    pieces = [piece for m in messages.messages() for piece in plain(m.text)]
    assert [p for p in pieces if not all(index.has(w, "messages") for w in index.words(p))] == []
