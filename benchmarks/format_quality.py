#!/usr/bin/env python3
"""Does compressed optimizer state cost quality? Trains a model with AdamW in format V2 (24-bit split master, companded 8-bit
momentum and variance, stochastic rounding), in FLASHOPTIM_V1 if asked for, and with the fp32 reference (32-bit master, fp32
state) on the same data and seeds, and prints the final validation losses side by side. One seed says little: two runs that
differ in a single rounding part ways early and end typically 0.6 % apart. So the gate is on the mean over the seeds, with its
standard error beside it; and `fp32-again`, the reference with a micro-batch half as large (the same sums, rounded in another
order), tells what chance alone makes of a pair of runs.

    launch/quickstart.sh                 # builds and prepares data/kjv
    benchmarks/format_quality.py         # three seeds, 490 steps each: about 20 minutes on two cores
    benchmarks/format_quality.py --steps 50 --seeds 1
    benchmarks/format_quality.py --model small --formats V2 V1 fp32-again --steps 400 --seeds 24 --ranks 1   # half an hour
    benchmarks/format_quality.py --model 25m --formats V2 V1 --steps 300 --seeds 1 --ranks 1    # about 30 minutes
    benchmarks/format_quality.py --model 25m --gains-factor 0.01 --formats V2 V1 --steps 300 --seeds 1 --ranks 1

--write also puts the table into benchmarks/results/. A run that is there already (in runs/), of the same build, is not repeated.
"""
import argparse
import hashlib
import json
import os
import pathlib
import statistics
import struct
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
REFERENCE = "fp32"
FORMATS = {
    "V2": [],
    "V1": ["optimizer.state_format=FLASHOPTIM_V1"],
    "fp32-again": ["optimizer.state=FP32", "optimizer.master_weight_bits=32", "train.micro_batch=4"],
    REFERENCE: ["optimizer.state=FP32", "optimizer.master_weight_bits=32"],
}
MODELS = {  # settings on top of the quick start's, and the gate in percent
    "quickstart": ([], 0.5),
    "small": (["model.hidden_size=128", "model.layers=4", "model.heads=4", "model.kv_heads=4", "model.feed_forward_size=352",
               "train.global_batch=8", "train.sequence_length=128", "train.validation_sequences=256", "schedule.final_fraction=0"],
              0.3),
    "25m": (["model.hidden_size=512", "model.layers=8", "model.heads=8", "model.kv_heads=8", "model.feed_forward_size=1408",
             "train.global_batch=8", "optimizer.learning_rate=1e-3", "schedule.warmup_steps=100", "schedule.final_fraction=0"], 0.3),
}


def gains_group(factor, name):
    """Norm gains, by default in fp32 state whatever the format, at a rate of their own and in the format itself."""
    state = " state: COMPANDED master_weight_bits: 24" if name in ("V2", "V1") else ""
    return [f"optimizer.group={{ pattern: '*norm*' learning_rate_factor: {factor:g}{state} }}"]


def folder_of(arguments, name, seed):
    model = "" if arguments.model == "quickstart" else arguments.model + "-"
    if arguments.gains_factor:
        model += f"gains{arguments.gains_factor:g}-"
    return ROOT / "runs" / f"format_quality-{model}{arguments.steps}-{name}-{seed}"


def binary():
    return os.environ.get("FLASHSHARD_BINARY", str(ROOT / "build" / "flashshard"))


def gains(run):
    """How far the master weights of the norms have come from 1, where they began."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([binary(), "export", str(run), "--format", "hf", "--dtype", "fp32", "--no-tokenizer", "--output", folder + "/model"],
                       check=True, stdout=subprocess.DEVNULL)
        data = (pathlib.Path(folder) / "model" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    way = []
    for name, entry in json.loads(data[8:8 + length]).items():
        if "norm" in name:
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            way += [value - 1 for value in struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])]
    return way


def highest_spike(lines):
    """The largest gradient norm after step 25 over the median of the 17 steps around it."""
    norms = [line["grad_norm"] for line in lines]
    return max((norm / statistics.median(norms[max(0, i - 8):i + 9]) for i, norm in enumerate(norms) if i >= 25), default=0)


def last_step(run):
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def results(arguments, name, seed):
    """The validation loss at the end, the mean training loss of the last 20 steps, and highest_spike()."""
    run = folder_of(arguments, name, seed)
    settings = [f"run.dir={run}", f"run.seed={seed}", f"train.steps={arguments.steps}", "checkpoint.keep_last=1",
                "train.validation_sequences=0", "train.validate_every=0", *MODELS[arguments.model][0], *FORMATS[name]]
    if arguments.gains_factor:
        settings += gains_group(arguments.gains_factor, name)
    command = ["mpirun", "-n", str(arguments.ranks), "--oversubscribe", binary(), "train", "--config",
               str(ROOT / "launch" / "configs" / "quickstart.textproto")]
    for setting in settings:
        command += ["--set", setting]
    # Beside the run: what it is made by. A format may have other bits in another build.
    marker = run.with_name(run.name + ".json")
    wanted = {"settings": [setting for setting in settings if not setting.startswith("run.dir")], "ranks": arguments.ranks,
              "program": hashlib.sha256(pathlib.Path(binary()).read_bytes()).hexdigest()}
    if run.exists():
        if not marker.exists():
            raise SystemExit(f"error: {run} is there and {marker.name} is not, which says what made it; move it away")
        made_by = json.loads(marker.read_text())
        if any(made_by.get(key) != wanted[key] for key in ("settings", "ranks")):
            raise SystemExit(f"error: {run} is there with other settings or ranks than are asked for now; move it away")
        if made_by["program"] != wanted["program"]:
            if not (arguments.reuse and last_step(run) == arguments.steps):
                raise SystemExit(f"error: {run} is there from another build; move it away, or give --reuse if it is finished")
            arguments.reused = True
    else:
        marker.parent.mkdir(exist_ok=True)
        marker.write_text(json.dumps(wanted, indent=1) + "\n")
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tail = lines[-20:]
    return lines[-1]["validation_loss"], sum(line["loss"] for line in tail) / len(tail), highest_spike(lines)


def gains_text(arguments):
    """Root mean squares of the gains' ways with seed 1, and their components along the reference's."""
    ways = {name: gains(folder_of(arguments, name, 1)) for name in [REFERENCE, *arguments.formats]}
    true = ways[REFERENCE]
    texts = []
    for name, way in ways.items():
        along = sum(a * b for a, b in zip(way, true)) / sum(b * b for b in true)
        texts.append(f"{name} {(sum(a * a for a in way) / len(way))**0.5:.2e} ({along:.2f} of {REFERENCE}'s way along it)")
    return f"Way of the {len(true)} norm gains from 1, root mean square, seed 1: " + "; ".join(texts) + "."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="quickstart")
    parser.add_argument("--formats", nargs="+", choices=[f for f in FORMATS if f != REFERENCE], default=["V2"],
                        help="compared with fp32 state")
    parser.add_argument("--gains-factor", type=float, default=0,
                        help="norm gains, stored in the format itself, at the learning rate times this")
    parser.add_argument("--steps", type=int, default=490)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--reuse", action="store_true", help="take runs of other builds, too, where the formats' bits are known to be the same")
    parser.add_argument("--write", action="store_true", help="also into benchmarks/results/format_quality[_MODEL][_gains].md")
    arguments = parser.parse_args()
    arguments.reused = False

    rows, references = [], []
    differences = {name: [] for name in arguments.formats}
    for seed in range(1, arguments.seeds + 1):
        reference = results(arguments, REFERENCE, seed)
        references.append(reference[0])
        rows.append(f"| {seed} | {REFERENCE} | {reference[0]:.4f} | | {reference[1]:.4f} | {reference[2]:.1f} |")
        print(rows[-1], flush=True)
        for name in arguments.formats:
            validation, training, spike = results(arguments, name, seed)
            differences[name].append(100 * (validation / reference[0] - 1))
            rows.append(f"| {seed} | {name} | {validation:.4f} | {differences[name][-1]:+.2f} % | {training:.4f} | {spike:.1f} |")
            print(rows[-1], flush=True)
    gate = MODELS[arguments.model][1]
    means = {name: statistics.fmean(values) for name, values in differences.items()}
    spread = 100 * (max(references) / min(references) - 1)

    def error(values):
        return f" (standard error {statistics.stdev(values) / len(values)**0.5:.2f})" if len(values) > 1 else ""

    summary = "; ".join(f"{name} {mean:+.2f} %{error(differences[name])}" for name, mean in means.items())
    split = "256 sequences of the validation split" if arguments.model == "small" else "the whole validation split"
    factor = f" --gains-factor {arguments.gains_factor:g}" if arguments.gains_factor else ""
    table = "\n".join([
        "# Compressed optimizer state against fp32 state", "",
        f"`benchmarks/format_quality.py --model {arguments.model}{factor} --formats {' '.join(arguments.formats)} --steps {arguments.steps} "
        f"--seeds {arguments.seeds} --ranks {arguments.ranks}`: AdamW on the quick start's data, {split}; nats per byte. "
        "A spike is a gradient norm after step 25 over the median of the 17 steps around it." +
        (" Some runs were made by other builds (`--reuse`)." if arguments.reused else ""), "",
        "| seed | state | validation | beside fp32 | training (last 20 steps) | highest spike |",
        "| --- | --- | --- | --- | --- | --- |", *rows, "",
        f"Mean difference: {summary} (gate on V2: {gate} %)." +
        (f" The reference's own losses differ by {spread:.2f} % between seeds." if len(references) > 1 else ""), ""])
    if arguments.gains_factor:
        table += "\n" + gains_text(arguments) + "\n"
    if arguments.write:
        model = "" if arguments.model == "quickstart" else f"_{arguments.model}"
        suffix = "_gains" if arguments.gains_factor else ""
        (ROOT / "benchmarks" / "results" / f"format_quality{model}{suffix}.md").write_text(table)
    print(table)
    raise SystemExit(0 if means.get("V2", 0) <= gate else 1)


if __name__ == "__main__":
    main()
