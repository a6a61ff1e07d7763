#!/usr/bin/env python3
"""Does compressed optimizer state cost quality? Trains the quick start's model with AdamW in format V2 (24-bit split master,
companded 8-bit momentum and variance, stochastic rounding) and with the fp32 reference (32-bit master, fp32 state) on the
same data and seeds, and prints the final validation losses side by side. One seed says little: two runs that differ in a single
rounding part ways early and end a few tenths of a per cent apart, so the gate is on the mean over the seeds, and the spread of
the reference over its own seeds is printed beside it.

    launch/quickstart.sh                 # builds and prepares data/kjv
    benchmarks/format_quality.py         # three seeds, 490 steps each: about 20 minutes on two cores
    benchmarks/format_quality.py --steps 50 --seeds 1

The table is written to benchmarks/results/format_quality.md. A run that is there already is not repeated.
"""
import argparse
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
FORMATS = {
    "V2": [],
    "fp32": ["optimizer.state=FP32", "optimizer.master_weight_bits=32"],
}
GATE = 0.5  # percent


def final_losses(arguments, name, settings, seed):
    run = ROOT / "runs" / f"format_quality-{arguments.steps}-{name}-{seed}"
    settings = [f"run.dir={run}", f"run.seed={seed}", f"train.steps={arguments.steps}", "checkpoint.keep_last=1",
                "train.validation_sequences=0", "train.validate_every=0", *settings]
    command = ["mpirun", "-n", str(arguments.ranks), "--oversubscribe", os.environ.get("FLASHSHARD_BINARY", str(ROOT / "build" / "flashshard")), "train", "--config",
               str(ROOT / "launch" / "configs" / "quickstart.textproto")]
    for setting in settings:
        command += ["--set", setting]
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tail = lines[-20:]
    return lines[-1]["validation_loss"], sum(line["loss"] for line in tail) / len(tail)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=490)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()

    rows, differences, references = [], [], []
    for seed in range(1, arguments.seeds + 1):
        results = {name: final_losses(arguments, name, settings, seed) for name, settings in FORMATS.items()}
        difference = 100 * (results["V2"][0] / results["fp32"][0] - 1)
        differences.append(difference)
        references.append(results["fp32"][0])
        rows.append(f"| {seed} | {results['V2'][0]:.4f} | {results['fp32'][0]:.4f} | {difference:+.2f} % | "
                    f"{results['V2'][1]:.4f} | {results['fp32'][1]:.4f} |")
        print(rows[-1], flush=True)
    mean = sum(differences) / len(differences)
    spread = 100 * (max(references) / min(references) - 1)
    table = "\n".join([
        "# AdamW V2 against the fp32-state reference", "",
        f"`benchmarks/format_quality.py --steps {arguments.steps} --seeds {arguments.seeds} --ranks {arguments.ranks}`: the quick "
        "start's model and data, the whole validation split; nats per byte.", "",
        "| seed | V2, validation | fp32, validation | difference | V2, training (last 20 steps) | fp32, training |",
        "| --- | --- | --- | --- | --- | --- |", *rows, "",
        f"Mean difference {mean:+.2f} % (gate: {GATE} %). The reference's own losses differ by {spread:.2f} % between seeds.", ""])
    output = ROOT / "benchmarks" / "results" / "format_quality.md"
    output.write_text(table)
    print(table)
    raise SystemExit(0 if abs(mean) <= GATE else 1)


if __name__ == "__main__":
    main()
