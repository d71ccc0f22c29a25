"""The gallery: a card for each example, from its docstring, with a picture that the example wrote if there is one."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from faces import ROOT, renew

PAGE = ROOT / "docs" / "gallery.md"
PICTURES = (
    ROOT / "docs" / "_static" / "gallery"
)  # with made.json: name -> the command that wrote it
TITLES = {
    "": "Short scripts",
    "variational": "Variational inference",
    "particles": "Particles",
    "diffusion": "Diffusion models",
    "images": "Models of images",
    "gflownet": "GFlowNets",
    "mam": "Marginalization models",
    "few_shot": "Few-shot learning",
    "pv_rnn": "PV-RNN",
    "imputation": "Missing data",
    "structure": "Structure summed out",
    "evaluation": "Evaluation",
    "altering": "Altering a trained model",
    "adversarial": "Two players",
}
HEAD = """# Gallery

Each example is one script with its source, its expected result and its run time in its docstring, and a `--smoke` size that
ends in seconds. All run from anywhere. The short ones come first: real data, a program, a call and a picture, in one file of at
most 150 lines that can be copied. Those of `examples/papers`, by family, try what papers claim, and print their figures beside
the claim, whatever they are; files named `_name.py` are helpers of the scripts beside them. A picture is what the script wrote
at the size that stands below it.
"""


def scripts() -> list[Path]:
    """The scripts of `examples/`, without helpers."""
    folder = ROOT / "examples"
    return sorted(
        file
        for file in folder.rglob("*.py")
        if not any(part.startswith("_") for part in file.relative_to(folder).parts)
        and not (file.parent / "__init__.py").exists()
    )


def parts(file: Path) -> tuple[str, str, str]:
    """Title, what it shows, and the usage line of a script."""
    doc = ast.get_docstring(ast.parse(file.read_text())) or ""
    title = doc.partition("\n")[0].rstrip(".")
    shows = re.search(r"What it shows:\s*(.*?)(?:\n\n|\Z)", doc, re.S)
    text = " ".join((shows[1] if shows else doc.partition("\n\n")[2].partition("\n\n")[0]).split())
    usage = re.search(r"^\s*(python examples/\S+)", doc, re.M)
    return title, sentences(text), usage[1] if usage else ""


def sentences(text: str, most: int = 260) -> str:
    """As many whole sentences of a text as fit; the first in any case. An indented example that follows is no part of one."""
    out = ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text):
        if out and len(out) + len(sentence) > most:
            break
        out = f"{out} {sentence}".strip()
    return out.rstrip(":.") + "."


def escaped(text: str) -> str:
    """Prose of a docstring as Markdown, begun with a capital and ended by a stop; what is in backticks stays."""
    pieces = re.split(r"(`[^`]+`)", text[:1].upper() + text[1:])
    pieces[::2] = [re.sub(r"([*_<$])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


def card(file: Path) -> str:
    title, shows, usage = parts(file)
    lines = [f"::::{{grid-item-card}} {escaped(title)}"]
    picture, made = PICTURES / f"{file.stem}.png", json.loads((PICTURES / "made.json").read_text())
    if picture.exists():
        usage = made[file.stem]
        lines += [f":img-top: _static/gallery/{picture.name}", f":img-alt: What {file.name} draws"]
    lines += ["", escaped(shows), "", ":::{card-footer}", f"`{usage}`", ":::", "::::"]
    return "\n".join(lines)


def text() -> str:
    blocks = [HEAD]
    for folder, title in TITLES.items():
        here = [f for f in scripts() if f.parent.name == (folder or "examples")]
        blocks += [f"## {title}\n", ":::::{grid} 1 1 2 2", ":gutter: 3", ""]
        blocks += [f"{card(file)}\n" for file in here]
        blocks += [":::::", ""]
    return "\n".join(blocks)


def write() -> None:
    renew(PAGE, text())
