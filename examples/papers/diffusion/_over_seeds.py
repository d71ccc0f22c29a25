"""A script whose rows are run for several seeds: options, a table of means with 95 % intervals, files and record."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _intervals import interval
from _record import keep, parsed, record_figure

type Row = dict[str, float]


def over_seeds(
    script: str, run: Callable[[Any, int], tuple[Row, Any]], full: Any, smoke: Any, *, what: str, measures: Sequence[str],
    digits: int = 3, arguments: list[str] | None = None, draw: Callable[[Any, Path], None] | None = None,
) -> None:  # fmt: skip
    """Run `run(config, seed)`, which returns numbers by name and what `draw` needs, for some seeds; keep and record the means.

    Args:
        script: its name, and that of its record.
        run: of one seed.
        full: the configuration.
        smoke: that of `--smoke`, for one seed.
        what: is measured, for the record.
        measures: what the figures belong to.
        digits: of the record.
        arguments: of the command line.
        draw: makes a picture from what the first seed returned.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--smoke", action="store_true", help="small sizes, one seed")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--out", type=Path, default=Path(f"{script}_output"))
    options = parsed(parser, arguments)
    seeds = range(options.seed, options.seed + (1 if options.smoke else options.seeds))
    found = []
    for seed in seeds:
        found.append(run(smoke if options.smoke else full, seed))
        print(f"seed {seed}: {json.dumps(found[-1][0])}", file=sys.stderr, flush=True)
    rows = [row for row, _ in found]
    means = {name: interval(np.array([row[name] for row in rows])) for name in rows[0]}
    wide = max(map(len, means))
    lines = [
        f"  {name:<{wide}}  {mean:9.{digits}f} ± {half:.{digits}f}"
        for name, (mean, half) in means.items()
    ]
    keep(
        options.out,
        "\n".join([f"{what}; seeds {list(seeds)}, ± half of the 95 % t interval", *lines]),
        rows,
    )
    if draw is not None:
        draw(found[0][1], options.out)
    if options.record:
        record_figure(
            f"diffusion/{script}", what=f"{what}; spread: half of the 95 % t interval over seeds",
            value={name: mean for name, (mean, _) in means.items()},
            spread={name: half for name, (_, half) in means.items()},
            seeds=f"{seeds[0]} to {seeds[-1]}", digits=digits, measures=list(measures),
        )  # fmt: skip
