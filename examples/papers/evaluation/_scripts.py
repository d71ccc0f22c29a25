"""What the scripts on evaluation share: options, reports, and records for the page of figures."""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import keep as keep, parsed, record_figure as record_figure


def options(
    description: str, name: str, smoke: str, arguments: list[str] | None = None
) -> argparse.Namespace:
    """The options of a script; the folder `out` exists afterwards."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help=smoke)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(f"{name}_output"))
    return parsed(parser, arguments)
