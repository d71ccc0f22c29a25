"""The glossary, from the words that the language's docstring defines; the bibliography, from the references of all docstrings."""

from __future__ import annotations

import inspect
import re

from faces import ROOT, faces, load, public, renew

# Words of particles and of objectives, which the language does not have.
MORE = {
    "ESS": "effective sample size, (sum w)^2 / sum w^2: how many equally weighted draws weighted ones are worth.",
    "evidence": "p(data): the density of the observations, latent sites integrated out; its logarithm in nats.",
    "k-hat": "shape of the tail of importance weights; above its threshold weighted means cannot be trusted.",
    "reparameterise": "write a draw as a differentiable function of noise and parameters.",
    "score": "derivative of a log-density in its parameters.",
}


def words() -> dict[str, str]:
    """Word -> what it means, in order of the alphabet."""
    text = " ".join((inspect.getdoc(load("ppl")) or "").split())
    own = text.partition("Words: ")[2]
    found = {
        word: meaning.strip(" ,;.") + "."
        for word, meaning in re.findall(r"\*([\w -]+)\*,? (.*?)(?=[;,] \*|$)", own)
    }
    return dict(sorted((found | MORE).items(), key=lambda item: item[0].lower()))


def references() -> dict[str, str]:
    """Full name -> what stands under Reference in its docstring."""
    found = {}
    for face in faces():
        for name in public(face):
            doc = inspect.getdoc(getattr(load(face), name)) or ""
            match = re.search(r"^References?:\s*(.*?)(?=\n\n|\n[A-Z]\w+:|\Z)", doc, re.M | re.S)
            if match:
                found.setdefault(f"lapilli.{face}.{name}", " ".join(match[1].split()).rstrip("."))
    return found


def linked(text: str) -> str:
    text = re.sub(r"([*_<$\[\]])", r"\\\1", text)
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def texts() -> dict[str, str]:
    terms = "\n\n".join(f"{word}\n: {meaning}" for word, meaning in words().items())
    lines = [
        f"- {{py:obj}}`~{name}`: {linked(text)}."
        for name, text in sorted(
            references().items(), key=lambda r: r[0].rpartition(".")[2].lower()
        )
    ]
    return {
        "glossary.md": f"# Glossary\n\nOne meaning a word, here and in the code.\n\n{terms}\n",
        "bibliography.md": "# Bibliography\n\nWhat an estimator, objective or sampler is taken from.\n\n"
        + "\n".join(lines)
        + "\n",
    }


def write() -> None:
    for name, text in texts().items():
        renew(ROOT / "docs" / name, text)
