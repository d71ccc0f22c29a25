"""What the scripts on evaluation share: options, reports, and records for the page of figures."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _record import parsed, record_figure as record_figure


def options(
    description: str, name: str, smoke: str, arguments: list[str] | None = None
) -> argparse.Namespace:
    """The options of a script; the folder `out` exists afterwards."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help=smoke)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(f"{name}_output"))
    return parsed(parser, arguments)


def keep(out: Path, text: str, metrics: Any) -> None:
    """Print the report; write report.txt and metrics.json."""
    print(text)
    (out / "report.txt").write_text(text + "\n")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
