"""The page of all messages has every one, and each says enough: what happened, and what to do."""

import ast
import json
import re
import shutil
import subprocess
import sys

import pytest
from _pages import DOCS
from _refusals import _text

sys.path.insert(0, str(DOCS / "_ext"))

import messages
from message_text import HELD, has_words, least, matcher, shown

ROOT = DOCS.parent
# Messages without a word for what to do. The number may only fall.
WITHOUT_REMEDY = 7
# Messages that no program of the page of errors and no test was seen to provoke. The number may only fall: `make refusals`.
WITHOUT_EXAMPLE = 0
LEAST = 30  # characters, beside what is computed
# What to do: an order at the beginning of a clause, or what would have been right.
VERBS = (
    "add|ask|begin|bound|build|call|change|check|choose|close|code|combine|compare|compute|condition|convert|correct|count|cut|declare|define"
    "|delete|divide|draw|drop|eliminate|end|enumerate|estimate|expand|find|fit|fix|flatten|forecast|give|hand|have|initialise|install|keep|label|lay|leave|let"
    "|load|look|lower|make|mark|mask|mend|move|name|observe|open|pad|pass|pick|predict|propose|put|raise|remove|rename|repeat|replace|reshape|return|reverse"
    "|reweight|run|sample|save|say|scale|score|select|set|simulate|sort|split|stack|standardise|start|store|subsample|subtract|sum|take|tell"
    "|transform|try|turn|update|use|write"
)
REMEDY = re.compile(
    rf"(?:[.;:,)}}|] |\[|^|\b(?:or|and|then|either|please) )(?:{VERBS})\b"
    r"|\b(?:must|needs?|needed|expected|wanted|choose from|one of|has to|have to|should)\b",
    re.I,
)


@pytest.fixture(scope="module")
def everything():
    return messages.messages()


def test_every_message_is_on_the_page(everything):
    raised = {
        (file, node.lineno)
        for package in ("ppl", "inference", "models")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
    }
    assert raised == {line for message in everything for line in message.lines}
    text = messages.text()
    assert [m.text for m in everything if messages.literal(shown(m.text)) not in text] == []
    own = {line for message in everything if has_words(message.text) for line in message.lines}
    assert len(own) > 0.98 * len(raised)  # the others hand on another's text


def test_every_wing_has_a_heading(everything):
    files = {file.relative_to(ROOT) for message in everything for file, _ in message.lines}
    wings = {"/".join(file.parent.parts[:2]) for file in files}
    assert wings <= set(messages.TOPICS)


def test_equal_messages_are_one(everything):
    kinds = [(message.kind, message.text) for message in everything]
    assert len(kinds) == len(set(kinds))


def test_messages_with_a_program_lead_to_it():
    text = messages.text()
    slugs = {messages.slug(heading) for heading in messages.headings().values()}
    linked = set(re.findall(r"errors\.md#([^)]+)", text))
    assert linked <= slugs and len(linked) > 0.8 * len(slugs), sorted(slugs - linked)


def test_every_message_has_a_program_or_an_example(everything):
    printed, known = messages.programs(), messages.examples()
    of_own = [m for m in everything if has_words(m.text)]
    bare = [messages.label(m) for m in of_own if not messages.link(m, printed)]
    missing = [label for label in bare if label not in known]
    assert len(missing) <= WITHOUT_EXAMPLE, (
        f"{len(missing)} messages have neither a program in docs/errors.md nor an example of a test, more than "
        f"{WITHOUT_EXAMPLE}. Run the test that provokes it with --refusals: {missing}"
    )


def test_examples_are_what_their_tests_provoke(everything):
    """As far as texts tell: the message is one of the library's, the example is like it, the test stands where it is said to."""
    by_label = {messages.label(m): m for m in everything}
    for label, example in messages.examples().items():
        assert matcher(by_label[label].text)(example["said"]), label
        file, _, name = example["test"].partition("::")
        function = name.partition("[")[0].rpartition("::")[2]
        assert f"def {function}(" in (ROOT / file).read_text(), example["test"]


def test_every_message_says_enough(everything):
    said = [m.text for m in everything if has_words(m.text)]
    short = [text for text in said if len(HELD.sub("", text)) < LEAST]
    assert [text for text in short if not re.search("cause|remedy", text)] == []


def test_every_message_says_what_to_do(everything):
    poor = [
        shown(m.text) for m in everything if has_words(m.text) and not REMEDY.search(shown(m.text))
    ]
    assert len(poor) <= WITHOUT_REMEDY, f"{len(poor)} messages name no remedy: {poor}"


@pytest.mark.docs
@pytest.mark.skipif(shutil.which("node") is None, reason="the page's script needs node")
def test_a_pasted_error_is_found(everything):
    """What the programs of the catalogue print, with names and numbers, is nearly always among the first five."""
    said = [m for m in everything if least(m.text) >= 25]
    like = [matcher(m.text) for m in said]
    printed = [text for text, _ in messages.programs() if any(is_like(text) for is_like in like)]
    script = f"""
        const {{ ranked }} = require({json.dumps(str(DOCS / "_static" / "messages.js"))});
        const texts = {json.dumps([shown(m.text) for m in said])};
        console.log(JSON.stringify({json.dumps(printed)}.map((query) => ranked(texts, query).slice(0, 5))));
    """
    done = subprocess.run(["node", "-"], input=script, capture_output=True, text=True, check=True)
    found = zip(printed, json.loads(done.stdout), strict=True)
    lost = [text for text, first in found if not any(like[i](text) for i in first)]
    assert len(printed) > 100 and len(lost) <= 0.03 * len(printed), lost


def said_by(folder, source):
    """The text of the statement that raises in a source file."""
    file = folder / "source.py"
    function, _, rest = source.partition("\n")
    file.write_text(f"def f(x, names, xs, problems):\n    {function}\n{rest}\n")
    (node,) = messages.raises(file)
    (said,) = messages.of_exception(node.exc, messages.Scope(messages.module(file)).at(node))
    return messages.tidy(said.text)


@pytest.mark.parametrize(
    "source, text",
    [
        ('raise ValueError(f"Site {site.name!r}: " "no.")', "Site {site}: no."),
        ('raise ValueError("a" + (" b" if x else " cde fgh"))', "a [b | cde fgh]"),
        ('raise ValueError("a" + (" cde fgh" if x else ""))', "a [cde fgh]"),
        ('raise TypeError("fit: " + "; ".join(f"{k} is bad" for k in names))', "fit: {k} is bad"),
        ('problems.append("one bad"); raise TypeError("; ".join(problems))', "one bad"),
        ('why = "too many"; raise ValueError(f"{why}: {len(xs)} rows")', "too many: {number of xs} rows"),
        ('raise made("z")\ndef made(name): return KeyError(f"no site {name}")', "no site z"),
        ('raise ValueError(f"{names}: no")\nclass A: names = "others"', "{names}: no"),
        ('raise ValueError(f"{names}: no")\ndef g(): names = "ours"; f(0, names, 0, 0)', "ours: no"),
        ('why, n = "few", 1; raise ValueError(f"{why} rows")', "few rows"),
        ('why, n = x; raise ValueError(f"{why} rows")\nwhy = "few"', "{why} rows"),
    ],
)  # fmt: skip
def test_a_text_is_read_off_the_source(tmp_path, source, text):
    assert shown(said_by(tmp_path, source)) == text


def test_what_is_missing_takes_its_space_along(tmp_path):
    text = said_by(tmp_path, 'end = " Once more." if x else ""; raise ValueError(f"No.{end}")')
    assert shown(text) == "No. [Once more.]"
    assert all(matcher(text)(said) for said in ("No.", "No. Once more."))


def test_a_list_of_remedies_is_one_of_them_or_several(tmp_path):
    source = 'able = ["enum"] if x else []; able.append("mvd"); raise ValueError(f"Use {\' or \'.join(able)}.")'
    text = said_by(tmp_path, source)
    assert shown(text) == "Use [enum | mvd]."
    assert all(matcher(text)(said) for said in ("Use mvd.", "Use enum or mvd."))
    assert not matcher(text)("Use neither.")


def test_what_a_key_error_says_has_no_quotes_around_it():
    assert _text(KeyError("no site 'z'")) == str(ValueError("no site 'z'"))


def test_an_example_stays_until_its_test_says_something_else(tmp_path, monkeypatch):
    message = messages.Message("ppl", "KeyError", "no site there", ((tmp_path / "a.py", 3, 4),))
    line, other = (str(tmp_path / "a.py"), 4), (str(tmp_path / "b.py"), 1)
    monkeypatch.setattr(messages, "EXAMPLES", tmp_path / "examples.json")
    monkeypatch.setattr(messages, "messages", lambda: [message])

    def kept(seen):
        messages.examples.cache_clear()
        messages.keep_examples(seen)
        return json.loads(messages.EXAMPLES.read_text()).get("KeyError: no site there")

    first = {"said": "so: no site there", "test": "t.py::test_a"}
    assert kept({line: [("another message", "t.py::test_b")]}) is None
    assert kept({line: [("so: no site there", "t.py::test_a")]}) == first
    assert kept({line: [("no site there", "t.py::test_c")]}) == first
    assert kept({other: [("x", "t.py::test_a")], line: [("no site there", "t.py::test_c")]}) == {
        "said": "no site there", "test": "t.py::test_c",
    }  # fmt: skip
    messages.examples.cache_clear()
