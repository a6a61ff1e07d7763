#!/usr/bin/env python3
"""FlashShard beside PyTorch on this machine's CPU: the same architecture, sizes, data, batch and schedule. Runs of both alternate
(A B A B ...), since a machine's speed drifts; the ratio is the median of the pairs' ratios.

    launch/quickstart.sh                                     # builds and prepares data/kjv
    benchmarks/peers/compare.py                              # quick start and 25m models, 7 pairs each
    benchmarks/peers/compare.py --model quickstart --pairs 3
    benchmarks/peers/compare.py --model quickstart --pairs 1 --steps 490     # loss curves to the end

PyTorch (PyPI) goes into the private folder build/peers-venv on first use; --python names another interpreter that has it. Writes
benchmarks/results/peers_cpu.md and .json.
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
COMMON = {"vocabulary": 256, "sequence-length": 256}
MODELS = {
    "quickstart": {"hidden": 192, "layers": 6, "heads": 6, "kv-heads": 2, "feed-forward": 512, "micro-batch": 8, "global-batch": 16,
                   "learning-rate": 3e-3},
    "25m": {"hidden": 512, "layers": 8, "heads": 8, "kv-heads": 8, "feed-forward": 1408, "micro-batch": 8, "global-batch": 8,
            "learning-rate": 1e-3},
}
UNTIMED_STEPS = 3  # caches, allocators and thread pools warm up


def peers_python(arguments):
    if arguments.python:
        return arguments.python
    folder = ROOT / "build" / "peers-venv"
    if not (folder / "bin" / "python3").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", "torch", "numpy"], check=True)
    return folder / "bin" / "python3"


def warmup(arguments):
    return min(50, arguments.steps // 5)


def run_pytorch(arguments, shape):
    command = [peers_python(arguments), HERE / "pytorch_llama.py", "--data", arguments.data, "--steps", str(arguments.steps),
               "--threads", str(arguments.threads), "--seed", "1"]
    for name, value in {**COMMON, **shape, "warmup": warmup(arguments)}.items():
        command += ["--" + name, str(value)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    tokens = shape["global-batch"] * COMMON["sequence-length"]
    result["tokens_per_second"] = tokens / statistics.median(result.pop("seconds")[UNTIMED_STEPS:])
    return result


def run_flashshard(arguments, model, shape, dtype):
    folder = ROOT / "runs" / "peers"
    shutil.rmtree(folder, ignore_errors=True)
    settings = {
        "run.dir": folder, "run.threads": arguments.threads, "run.seed": 1, "data.path": arguments.data, "model.preset": model,
        "model.dtype": dtype, "train.steps": arguments.steps, "train.sequence_length": COMMON["sequence-length"],
        "train.micro_batch": shape["micro-batch"], "train.global_batch": shape["global-batch"], "train.validate_every": 0,
        "train.validation_sequences": 8,
        "optimizer.learning_rate": shape["learning-rate"], "optimizer.weight_decay": 0.1, "optimizer.clip_norm": 1,
        "schedule.kind": "COSINE", "schedule.warmup_steps": warmup(arguments), "schedule.final_fraction": 0.1,
        "checkpoint.every": 0, "checkpoint.at_end": "false"}
    if dtype == "FP32":
        settings |= {"optimizer.state": "FP32", "optimizer.master_weight_bits": 32}
    command = [os.environ.get("FLASHSHARD_BINARY", ROOT / "build" / "flashshard"), "train", "--config", ROOT / "launch" / "configs" / "quickstart.textproto"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"flashshard train ended with status {os.waitstatus_to_exitcode(status)}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    memory = json.loads((folder / "memory.json").read_text())
    tagged = memory["ranks"][0]["tagged"]
    optimizer = sum(tagged[name] for name in ("momentum", "variance", "scales", "correction"))
    tokens = shape["global-batch"] * COMMON["sequence-length"]
    return {
        "parameters": memory["parameters"], "losses": [line["loss"] for line in lines],
        "tokens_per_second": tokens / statistics.median(line["step_ms"] / 1000 for line in lines[UNTIMED_STEPS:]),
        "bytes": {"weights": tagged["weights"], "gradients": tagged["gradients"] + tagged["accumulator"], "optimizer": optimizer,
                  "activations": tagged["activations"], "other": tagged["buckets"] + tagged["other"] + tagged["staging"]},
        "rss_peak": usage.ru_maxrss * 1024}


def megabytes(count):
    return f"{count / 1e6:.1f}"


def speed_table(pairs):
    names = [name for name in pairs[0] if name != "PyTorch FP32"]
    rows = ["| | tokens per second, median | beside PyTorch: median of the pairs' ratios, lowest to highest |", "| --- | --- | --- |"]
    for name in pairs[0]:
        median = statistics.median(pair[name]["tokens_per_second"] for pair in pairs)
        ratios = sorted(pair[name]["tokens_per_second"] / pair["PyTorch FP32"]["tokens_per_second"] for pair in pairs)
        beside = f"**{statistics.median(ratios):.2f}**, {ratios[0]:.2f} to {ratios[-1]:.2f}" if name in names else ""
        rows.append(f"| {name} | {median:,.0f} | {beside} |")
    return rows


def memory_table(pair):
    rows = ["| MB | weights | gradients | optimizer | activations | other | resident set, peak |", "| --- " * 7 + "|"]
    for name, result in pair.items():
        numbers = result["bytes"]
        cells = [megabytes(numbers[k]) if k in numbers else "" for k in ("weights", "gradients", "optimizer", "activations", "other")]
        rows.append(f"| {name} | {' | '.join(cells)} | {megabytes(result['rss_peak'])} |")
    return rows


def loss_table(pair, steps):
    marks = sorted({round(steps * k / 8) for k in range(1, 9)} - {0})
    rows = ["| loss, mean up to step | " + " | ".join(map(str, marks)) + " |", "| --- " * (len(marks) + 1) + "|"]
    for name, result in pair.items():
        window = max(1, marks[0] // 2)
        cells = [f"{statistics.mean(result['losses'][max(0, mark - window):mark]):.3f}" for mark in marks]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append", help="default: all")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=16, help="of each run; the first three are not timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "data" / "kjv")
    parser.add_argument("--python", help="an interpreter that has torch")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "benchmarks" / "results" / "peers_cpu")
    arguments = parser.parse_args()
    if arguments.steps <= UNTIMED_STEPS:
        parser.error(f"--steps must be above {UNTIMED_STEPS}")

    text, raw = ["# FlashShard beside PyTorch on a CPU", ""], {}
    for model in arguments.model or MODELS:
        shape, pairs = MODELS[model], []
        for _ in range(arguments.pairs):
            pairs.append({"PyTorch FP32": run_pytorch(arguments, shape),
                          "FlashShard BF16": run_flashshard(arguments, model, shape, "BF16"),
                          "FlashShard FP32": run_flashshard(arguments, model, shape, "FP32")})
            print(model, {name: round(result["tokens_per_second"]) for name, result in pairs[-1].items()}, file=sys.stderr, flush=True)
        counts = {result["parameters"] for result in pairs[0].values()}
        if len(counts) != 1:
            raise SystemExit(f"the models differ: {counts} parameters")
        raw[model] = pairs
        text += [f"## {model}: {counts.pop():,} parameters, {arguments.threads} threads, {arguments.pairs} pairs of {arguments.steps} steps",
                 "", *speed_table(pairs), "", *memory_table(pairs[0]), "", *loss_table(pairs[0], arguments.steps), ""]
    text.insert(1, f"\n`benchmarks/peers/compare.py{''.join(f' --model {name}' for name in arguments.model or [])} --pairs {arguments.pairs} --steps {arguments.steps} --threads {arguments.threads}`, "
                   f"PyTorch {next(iter(raw.values()))[0]['PyTorch FP32']['torch']}. FlashShard BF16: bf16 weights, AdamW V2; FP32: fp32 "
                   "weights, state and arithmetic, as PyTorch. Sampling orders and initial draws differ.")
    arguments.output.with_suffix(".md").write_text("\n".join(text))
    arguments.output.with_suffix(".json").write_text(json.dumps(raw, indent=1))
    print("\n".join(text))


if __name__ == "__main__":
    main()
