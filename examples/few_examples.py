"""Classes of which three examples are known, after learning from many others (NIW-Meta).

What it shows: `FewShotClassifier.fit` learns from letters what makes a class, and `adapt` takes three examples of each digit,
none of which was in the fit; its probabilities are means over what the weights for these classes may be.

Data: Greek and Cyrillic letters in the fonts that come with matplotlib, 16 x 16 pixels; digits are new.
Expected: 86 % right over twenty choices of the three, of the nearest mean image of the same examples 75 %.
Run time: two minutes on 2 CPU cores.

    python examples/few_examples.py [--smoke] [--out few_examples.png]
"""

import argparse
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.neighbors import KNeighborsClassifier

from lapilli.models.niw_meta import FewShotClassifier

FAMILIES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")
STYLES = ("", "-Bold", "-Oblique", "-Italic", "-BoldOblique", "-BoldItalic")
STIX = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")
LETTERS = [chr(c) for c in (*range(0x391, 0x3A2), *range(0x3B1, 0x3CA), *range(0x410, 0x450))]


def load(letters: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images of each letter in each font, [rows, 256], and what they show."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    files = [folder / f"{n}.ttf" for n in (*(f + s for f in FAMILIES for s in STYLES), *STIX)]
    fonts = [ImageFont.truetype(f, 14) for f in files if f.exists()]

    def drawn(letter, font):
        image = Image.new("L", (16, 16))
        ImageDraw.Draw(image).text((8, 8), letter, 255, font, anchor="mm")
        return np.asarray(image, float).ravel() / 255

    images = np.array([drawn(letter, font) for letter in letters for font in fonts])
    return images, np.repeat(letters, len(fonts))


def solve(num_steps: int) -> FewShotClassifier:
    """What letters teach of classes."""
    model = FewShotClassifier(ways=10, shots=3, num_steps=num_steps, num_draws=20, random_state=0)
    return model.fit(*load(LETTERS[:40] if num_steps < 100 else LETTERS))


def draw(x, y, few, adapted, rest, out: Path) -> None:
    probs = adapted.predict_proba(x[rest])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    tiles = np.pad(x[few].reshape(10, 3, 16, 16), [(0, 0), (0, 0), (1, 1), (1, 1)])
    left.imshow(tiles.transpose(1, 2, 0, 3).reshape(3 * 18, 10 * 18), cmap="gray_r")
    left.set(title="Three examples of each class are all that is told", xticks=[], yticks=[])
    confusion = np.array([probs[y[rest] == k].mean(0) for k in adapted.classes_])
    right.imshow(confusion, cmap="Blues", vmin=0, vmax=1)
    right.set(
        title="Mean probabilities", xlabel="said", ylabel="is", xticks=range(10), yticks=range(10)
    )
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("few_examples.png")) -> dict[str, float]:
    model = solve(4 if smoke else 1000)
    x, y = load(list("0123456789"))
    right, nearest = [], []
    for seed in range(2 if smoke else 20):
        rng = np.random.default_rng(seed)
        few = np.concatenate([rng.choice(np.flatnonzero(y == k), 3, False) for k in "0123456789"])
        rest = np.setdiff1d(np.arange(len(y)), few)
        adapted = model.adapt(x[few], y[few])
        right.append(adapted.score(x[rest], y[rest]))
        means = x[few].reshape(10, 3, -1).mean(1)
        mean_images = KNeighborsClassifier(1).fit(means, list("0123456789"))
        nearest.append(mean_images.score(x[rest], y[rest]))
    for name, shares in {"this": right, "nearest mean image": nearest}.items():
        error = np.std(shares, ddof=1) / len(shares) ** 0.5
        print(f"{name:<20} {np.mean(shares):.3f} +- {error:.3f} right, {len(shares)} choices")
    draw(x, y, few, adapted, rest, out)
    return {"right": float(np.mean(right)), "nearest": float(np.mean(nearest))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Digits from three examples each.")
    parser.add_argument("--smoke", action="store_true", help="few steps and letters")
    parser.add_argument("--out", type=Path, default=Path("few_examples.png"), help="the picture")
    main(**vars(parser.parse_args()))
