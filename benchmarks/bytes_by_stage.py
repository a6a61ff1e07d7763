#!/usr/bin/env python3
"""Bytes per parameter and rank by ZeRO stage and world size, from measured runs: steps of AdamW V2 with made-up gradients
(benchmarks/zero_step.cc), ranks as threads of one process, what the arenas hold beside what the formulas predict.

    cmake --preset release -DFLASHSHARD_BENCHMARKS=ON && cmake --build build --target zero_step
    benchmarks/bytes_by_stage.py            # table and JSON in benchmarks/results; with matplotlib also docs/images/bytes_by_stage.png
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STAGES = [["--stage", "0"], ["--stage", "0", "--release"], ["--stage", "1"], ["--stage", "2"], ["--stage", "2", "--release"],
          ["--stage", "3"], ["--stage", "3", "--release"]]
WORLD_SIZES = [1, 2, 4, 8]
TRANSIENT = ("buckets", "gathered", "staging")  # on their own rows: they do not grow with the model's depth
SHAPE = ["--hidden", "512", "--layers", "16", "--vocabulary", "4096", "--bucket-bytes", str(4 << 20), "--steps", "1"]


def measure(stage, ranks):
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run([ROOT / "build" / "zero_step", *stage, "--ranks", str(ranks), *SHAPE, "--json", file.name], check=True,
                       stdout=subprocess.DEVNULL)
        return json.loads(pathlib.Path(file.name).read_text())


def per_parameter(run, column, transient):
    """Bytes per parameter on one rank, the mean of all."""
    chosen = [row[column] for name, row in run["bytes"].items() if (name in TRANSIENT) == transient]
    return sum(chosen) / run["parameters"] / run["ranks"]


def table(runs):
    lines = ["| | " + " | ".join(f"N = {n}" for n in WORLD_SIZES) + " |", "| --- |" + " --- |" * len(WORLD_SIZES)]
    for what in dict.fromkeys(run["what"] for run in runs):
        cells = []
        for run in (r for r in runs if r["what"] == what):
            cells.append(f"{per_parameter(run, 'tagged', False):.3f} ({per_parameter(run, 'predicted', False):.3f})"
                         f" + {per_parameter(run, 'tagged', True):.2f}")
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(runs):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for what in dict.fromkeys(run["what"] for run in runs):
        chosen = [run for run in runs if run["what"] == what]
        axes.plot([r["ranks"] for r in chosen], [per_parameter(r, "tagged", False) for r in chosen], marker="o", label=what)
    axes.axhline(16, color="grey", linestyle=":", label="fp32 Adam")
    axes.set(xscale="log", xlabel="ranks", ylabel="bytes per parameter on a rank", ylim=(0, 17), xticks=WORLD_SIZES)
    axes.set_xticklabels([str(n) for n in WORLD_SIZES])
    axes.minorticks_off()
    axes.legend(fontsize=8, ncol=2)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "images" / "bytes_by_stage.png", dpi=110)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    runs = [measure(stage, ranks) for stage in STAGES for ranks in WORLD_SIZES]
    worst = max(abs(per_parameter(r, "tagged", False) / per_parameter(r, "predicted", False) - 1) for r in runs)
    text = "\n".join([
        "# Bytes per parameter on a rank, by stage and world size", "",
        f"`benchmarks/bytes_by_stage.py`: {runs[0]['parameters']:,} parameters, AdamW V2. Weights, gradients and states as the arenas "
        "hold them (as the formulas predict them) + buffers of buckets and gathered layers, which do not grow with the model's depth.",
        "", table(runs), "", f"Held against predicted: at most {100 * worst:.2f} % apart.", ""])
    (RESULTS / "bytes_by_stage.md").write_text(text)
    (RESULTS / "bytes_by_stage.json").write_text(json.dumps(runs, indent=1) + "\n")
    print(text)
    try:
        plot(runs)
    except ImportError:
        print("no plot: matplotlib is not installed")


if __name__ == "__main__":
    main()
