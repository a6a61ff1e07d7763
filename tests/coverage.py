#!/usr/bin/env python3
"""Line coverage of the rooms from a build instrumented with FLASHSHARD_COVERAGE, after its tests have run.

    tests/coverage.py BUILD_DIR [--fail-under PERCENT]

Asks gcov for JSON and counts a line as covered when any object ran it: headers and templates stand in many objects.
Prints a table by room and the least covered files; ends with an error below the limit.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "comm", "optim", "runtime", "launch")


def lines_of(data_file):
    """{source: {line: ran}} of one object, project sources only."""
    result = subprocess.run(["gcov", "--json-format", "--stdout", str(data_file)], cwd=data_file.parent, check=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    sources = collections.defaultdict(dict)
    for text in result.stdout.decode(errors="replace").splitlines():
        document = json.loads(text)
        for file in document["files"]:
            path = pathlib.Path(document["current_working_directory"], file["file"]).resolve()
            if not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in ROOMS:
                continue
            lines = sources[str(path.relative_to(ROOT))]
            for line in file["lines"]:
                number = line["line_number"]
                lines[number] = lines.get(number, False) or line["count"] > 0
    return sources


def percent(lines):
    return 100 * sum(lines) / max(len(lines), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--fail-under", type=float, default=0)
    arguments = parser.parse_args()

    # Only the rooms' own objects: tests see the same headers, and every library source is in a library.
    data_files = [f.resolve() for room in ROOMS for f in (arguments.build / room).rglob("*.gcda")]
    if not data_files:
        sys.exit(f"error: no coverage data in {arguments.build}; build with -DFLASHSHARD_COVERAGE=ON and run the tests")
    total = collections.defaultdict(dict)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for sources in pool.map(lines_of, data_files):
            for source, lines in sources.items():
                for number, ran in lines.items():
                    total[source][number] = total[source].get(number, False) or ran

    rooms = {room: [ran for s, lines in total.items() if s.startswith(room + "/") for ran in lines.values()] for room in ROOMS}
    for room, lines in rooms.items():
        print(f"{room:10} {sum(lines):6} of {len(lines):6} lines  {percent(lines):5.1f} %")
    everything = [ran for lines in rooms.values() for ran in lines]
    print(f"{'all':10} {sum(everything):6} of {len(everything):6} lines  {percent(everything):5.1f} %")
    print("least covered:")
    for source, lines in sorted(total.items(), key=lambda item: percent(item[1].values()))[:8]:
        print(f"  {percent(lines.values()):5.1f} %  {source}")
    if percent(everything) < arguments.fail_under:
        sys.exit(f"error: line coverage {percent(everything):.1f} % is below {arguments.fail_under} %")


if __name__ == "__main__":
    main()
