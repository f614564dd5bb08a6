"""Command line of the benchmarks: `python -m benchmarks [--quick] [--only NAME ...] [--targets a,b] [--rounds N]`."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import report, servers
from benchmarks.measure import Result, measure
from benchmarks.workloads import QUICK, Sizes, all_workloads
from tests.support.target import TARGET_NAMES


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short runs of everything: proves that it works")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="workloads, as shell patterns")
    parser.add_argument("--targets", default=",".join(TARGET_NAMES), help="comma separated (default: all)")
    parser.add_argument("--rounds", type=int, help="rounds in turn (default: 3, quick 1)")
    parser.add_argument("--seconds", type=float, help="length of one pgbench or connect run")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="RUSTYDB_NAME")
    parser.add_argument("--out", type=Path, default=report.FOLDER, help="folder for the JSON")
    parser.add_argument("--list", action="store_true", help="print the workloads' names")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = options_of(arguments)
    sizes = QUICK if options.quick else Sizes()
    if options.seconds:
        sizes = Sizes(options.seconds, sizes.rows, sizes.idle_clients, sizes.scale)
    if options.list:
        print("\n".join(workload.name for workload in all_workloads(sizes, None)))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 180)
    settings = dict(word.split("=", 1) for word in options.set)
    names = [name for name in TARGET_NAMES if name in options.targets.split(",")]
    running = servers.start(names, settings)
    results: list[Result] = []
    try:
        for workload in all_workloads(sizes, running.rustydb):
            if options.only and not any(fnmatch.fnmatch(workload.name, pattern) for pattern in options.only):
                continue
            rounds = options.rounds or (1 if options.quick else 3)
            results.append(measure(workload, running.targets, rounds, lambda text: print(text, file=sys.stderr)))
    finally:
        running.close()
        if results:
            report.print_table(results, running.notes, console)
            path = report.write_json(results, running.notes, running.settings, options.out)
            console.print(f"written to {path}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
