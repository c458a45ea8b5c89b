"""The command line without typer and rich: ``bench --device cuda``, on machines that have PyTorch and Triton only."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moegate.bench.gpu.sitting import SECONDS
from moegate.bench.gpu.verb import DEVICES, bench_on_device


def main(arguments: Sequence[str], missing: Sequence[str]) -> int:
    """Run ``bench`` on a device; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="moegate",
        description="Check, then time moegate on a GPU.",
        epilog=f"All other verbs need {' and '.join(missing)}, which are not installed here: install moegate with pip.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="bench")
    bench = verbs.add_parser("bench", help="check, then time moegate on a GPU")
    bench.add_argument("suite", nargs="?", default="all", help="one suite; all of them without it")
    bench.add_argument("--device", choices=DEVICES, required=True)
    bench.add_argument("--all", action="store_true", help="every suite, in one sitting; so it is without a suite, too")
    bench.add_argument("--seconds", type=float, default=SECONDS, help="for the whole sitting")
    bench.add_argument("--only", default="", help="cases with one of these texts in 'SUITE CASE', separated by commas")
    bench.add_argument("--output", "-o", type=Path, default=None, help="folder for cuda.jsonl and cuda.md")
    given = parser.parse_args(arguments)
    suite = "all" if given.all else given.suite
    try:
        return bench_on_device(suite, given.device, seconds=given.seconds, only=given.only, output=given.output)
    except (ValueError, OSError) as error:
        parser.exit(2, f"Error: {error}\n")
