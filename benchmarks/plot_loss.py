"""Draws a run's loss curve from its metrics.jsonl.

Usage: python plot_loss.py RUN_DIR [RUN_DIR...] --output loss.png
           [--gzip 1.64] [--title TEXT] [--x tokens|steps]

RUN_DIR is a run's folder (or a metrics.jsonl). Training loss is a line, validation loss dots with the last value
written beside them. --gzip draws what gzip -9 needs for the same text, in nats per byte: a model of bytes below this
line has learnt more than the compressor knows (8 * ln 2 * compressed size / original size). The format follows the
name of the output: .png or .svg. Needs matplotlib, nothing else.
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend has to be chosen first)

COLOURS = ["#1f5fa8", "#c8553d", "#4f8a5b", "#7a5195"]


def read_metrics(run):
    """The lines of a run by step; a line that a crash tore is left out."""
    path = run / "metrics.jsonl" if run.is_dir() else run
    steps = {}
    for line in path.read_text().splitlines():
        try:
            metrics = json.loads(line)
        except json.JSONDecodeError:
            continue
        steps[metrics["step"]] = metrics
    if not steps:
        raise SystemExit(f"{path}: no steps yet")
    return [steps[step] for step in sorted(steps)]


def smoothed(values, weight=0.9):
    """Exponential mean without the bias of its start."""
    mean, total, result = 0.0, 0.0, []
    for value in values:
        mean = weight * mean + (1 - weight) * value
        total = weight * total + (1 - weight)
        result.append(mean / total)
    return result


def draw_run(axes, metrics, x_key, colour, name):
    finite = [m for m in metrics if isinstance(m["loss"], (int, float))]
    x, loss = [m[x_key] for m in finite], [m["loss"] for m in finite]
    axes.plot(x, loss, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(x, smoothed(loss), color=colour, linewidth=1.6, label=f"{name}training loss")
    validated = [m for m in metrics if isinstance(m.get("validation_loss"), (int, float))]
    if not validated:
        return
    x, loss = [m[x_key] for m in validated], [m["validation_loss"] for m in validated]
    axes.plot(x, loss, "o", color=colour, markersize=4.5, markeredgecolor="white",
              label=f"{name}validation loss")
    axes.annotate(f"{loss[-1]:.3f}", (x[-1], loss[-1]), xytext=(7, 0),
                  textcoords="offset points", va="center", color=colour, fontsize=9)


def draw(arguments):
    x_key = {"tokens": "tokens", "steps": "step"}[arguments.x]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for index, run in enumerate(arguments.runs):
        name = "" if len(arguments.runs) == 1 else f"{run.resolve().name}: "
        draw_run(axes, read_metrics(run), x_key, COLOURS[index % len(COLOURS)], name)
    if arguments.gzip is not None:
        axes.axhline(arguments.gzip, color="#888888", linestyle="--", linewidth=1.2,
                     label=f"gzip -9: {arguments.gzip:.2f}")
    axes.set_xlabel({"tokens": "training tokens", "steps": "steps"}[arguments.x])
    axes.set_ylabel("nats per byte" if arguments.gzip is not None else "nats per token")
    axes.set_title(arguments.title, loc="left", fontsize=11)
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_xlim(0, axes.dataLim.x1 * 1.07)  # room for the last value
    # The same run draws the same file, so that the picture in the repository changes only with its data.
    matplotlib.rcParams["svg.hashsalt"] = "flashshard"
    undated = {"Date": None} if arguments.output.suffix == ".svg" else {}
    figure.savefig(arguments.output, dpi=150, metadata=undated)
    print(arguments.output)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN_DIR")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--gzip", type=float, help="nats per byte of gzip -9 on the same text")
    parser.add_argument("--title", default="")
    parser.add_argument("--x", choices=["tokens", "steps"], default="tokens")
    draw(parser.parse_args())


if __name__ == "__main__":
    main()
