#!/usr/bin/env python3
"""What a save costs training: runs that wait for every save, and runs that go on while it is written (checkpoint.async), in turns.

    cmake --preset release && cmake --build build --target flashshard
    benchmarks/save_while_training.py --data DATA --folder /scratch/saves     # DATA: a folder of `flashshard prepare`

Prints, from metrics.jsonl: the median step with no save in flight; how much longer the first step after a save began was, and what of
that it waited for the copy and the votes; the steps beside the writing; and from begin to commit.
"""
import argparse
import json
import pathlib
import shutil
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]


def train(arguments, name, settings):
    folder = arguments.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    bind = ["--bind-to", "none"] if arguments.threads else []  # a save's thread may take a core that training leaves
    command = ["mpirun", "-n", str(arguments.ranks), "--oversubscribe", *bind, ROOT / "build" / "flashshard", "train", "--config",
               ROOT / "launch" / "configs" / "quickstart.textproto"]
    settings = [f"run.dir={folder}", f"data.path={arguments.data}", f"model.preset={arguments.preset}", f"train.steps={arguments.steps}",
                "schedule.warmup_steps=0", "train.validate_every=0", f"checkpoint.every={arguments.every}", "checkpoint.keep_last=1",
                "checkpoint.at_end=false", "train.micro_batch=1", f"train.global_batch={arguments.batch}",
                f"train.sequence_length={arguments.sequence}", f"run.threads={arguments.threads}", *settings]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    return lines


def classify(lines, every):
    """Steps with no save in flight, first steps after a save began, steps beside the writing; what was waited; begin to commit."""
    quiet, first, beside, waited, background = [], [], [], [], []
    in_flight = False
    goes_on = any("save_background_ms" in line for line in lines)
    for line in lines[2:]:  # first touch of memory
        if (line["step"] - 1) % every == 0 and line["step"] > every:
            # What this step's update waited is in the next line.
            after = lines[line["step"]]["save_wait_ms"] if line["step"] < len(lines) else 0
            first.append(line["step_ms"])
            waited.append(line["save_wait_ms"] + after)
            in_flight = goes_on
        elif in_flight:
            beside.append(line["step_ms"])
        elif line["step"] % every != 0:
            quiet.append(line["step_ms"])
        if "save_background_ms" in line:
            background.append(line["save_background_ms"])
            in_flight = False
    return quiet, first, beside, waited, background


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--folder", required=True, type=pathlib.Path, help="on the disk to measure")
    parser.add_argument("--preset", default="25m")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="of a rank, unbound; 0: as the run decides")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    modes = {"waits": ["checkpoint.async=false"], "goes on": []}
    found = {mode: [[] for _ in range(5)] for mode in modes}
    for _ in range(arguments.rounds):
        for mode, settings in modes.items():
            for all_rounds, one in zip(found[mode], classify(train(arguments, mode.replace(" ", "_"), settings), arguments.every)):
                all_rounds += one
    median = lambda values: f"{statistics.median(values):.0f} ms" if values else "-"
    print(f"{arguments.preset}, {arguments.ranks} ranks, {arguments.batch} sequences of {arguments.sequence}, a save every "
          f"{arguments.every} steps; medians of {arguments.rounds} rounds\n")
    print("| training | step, no save in flight | first step after a save began | save held it up by | steps beside the writing | begin to commit |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for mode, columns in found.items():
        quiet, first, beside, waited, background = map(median, columns)
        print(f"| {mode} | {quiet} | {first} | {waited} | {beside} | {background} |")


if __name__ == "__main__":
    main()
