#!/usr/bin/env python3
"""A step of AdamW on one thread, this program beside PyTorch's fused fp32 AdamW, in turns.

    cmake --preset release && cmake --build build --target flashshard
    benchmarks/peers/optimizer.py                       # 64 Mi parameters
    benchmarks/peers/optimizer.py --python PYTHON       # an interpreter that has torch

Prints the medians of the rounds, in parameters a second, and their ratio. PyTorch's step reads and writes 28 bytes a parameter (fp32 weight,
gradient and two moments), V2's 12.25.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def by_pytorch(elements):
    """Runs in the peer's interpreter: processor seconds of a step, as `bench optimizer` counts them; the median of five."""
    import time

    import torch

    torch.set_num_threads(1)
    weight = torch.nn.Parameter(torch.randn(elements))
    weight.grad = torch.randn(elements) * 1e-3
    optimizer = torch.optim.AdamW([weight], fused=True)
    seconds = []
    for _ in range(6):
        start = time.process_time()
        optimizer.step()
        seconds.append(time.process_time() - start)
    print(json.dumps({"version": torch.__version__, "seconds": statistics.median(seconds[1:])}))


def ours(elements):
    """Parameters a second by instruction set."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([ROOT / "build" / "flashshard", "bench", "optimizer", "--rule", "ADAMW", "--format", "V2", "--master", "24", "--isa",
                        "avx2", "avx512", "--elements", str(elements), "--repeat", "3", "--json", file.name], check=True,
                       stdout=subprocess.DEVNULL)
        rows = json.loads(pathlib.Path(file.name).read_text())["rows"]
    return {row["instruction_set"]: row["params_per_second"] for row in rows if row["implementation"] == "flashshard"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--elements", type=int, default=1 << 26)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_peer:
        by_pytorch(arguments.elements)
        return
    rounds = {}
    for _ in range(arguments.rounds):
        peer = json.loads(subprocess.run([arguments.python, __file__, "--as-peer", "--elements", str(arguments.elements)], check=True,
                                         stdout=subprocess.PIPE).stdout)
        name = f"PyTorch {peer['version']}, fused fp32"
        for key, value in {name: arguments.elements / peer["seconds"], **ours(arguments.elements)}.items():
            rounds.setdefault(key, []).append(value)
    medians = {key: statistics.median(values) for key, values in rounds.items()}
    reference = medians[name]
    print(f"AdamW, {arguments.elements} parameters, 1 thread, medians of {arguments.rounds} rounds\n")
    print("| step | 10^9 parameters/s | beside PyTorch |\n| --- | ---: | ---: |")
    for key, value in medians.items():
        label = key if key == name else f"V2, stochastic, {key}"
        print(f"| {label} | {value / 1e9:.3f} | {value / reference:.2f} |")


if __name__ == "__main__":
    main()
