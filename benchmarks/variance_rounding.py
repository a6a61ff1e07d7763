#!/usr/bin/env python3
"""How well does an 8-bit variance follow its fp64 value when beta2 is near 1? Random gradients, their deviation constant and then
a tenth of it; the mean of sqrt(v) over its fp64 value, for codes rounded to nearest, as in FlashOptim's own format, and
stochastically (format V2, docs/numerics.md). Needs numpy.

    benchmarks/variance_rounding.py
"""
import argparse

import numpy as np

GROUP = 32


def scale(largest):
    """V2's 16-bit scale, as fp32."""
    bits = np.maximum(largest, np.float32(2.0**-60)).view(np.uint32)
    return ((bits + 0x7FF0) >> 15 << 15).astype(np.uint32).view(np.float32)


def stored(root, kind, random):
    """sqrt(v) after encoding and decoding."""
    largest = root.max(axis=1, keepdims=True)
    if kind == "FlashOptim":
        return np.floor(255 * root / largest + 0.5) * (largest.astype(np.float16).astype(np.float32) / np.float32(255))
    s = scale(largest)
    noise = random.integers(0, 256, root.shape) if kind == "stochastic" else 128
    code = (np.rint(root.astype(np.float64) * (np.float32(65280) / s)).astype(np.int64) + noise) >> 8
    return np.maximum(code, root > 0).astype(np.float32) * (s * np.float32(1 / 255))


def ratios(kind, beta2, steps, groups=256):
    random = np.random.default_rng(0)
    deviation = np.exp(random.normal(0, 0.3, (groups, GROUP)))
    variance, exact = np.zeros((groups, GROUP), np.float32), np.zeros((groups, GROUP))
    result = []
    for size in (1.0, 0.1):
        for _ in range(steps):
            gradient = (random.normal(0, size, exact.shape) * deviation).astype(np.float32)
            exact = exact * beta2 + gradient.astype(np.float64) ** 2 * (1 - beta2)
            variance = variance * np.float32(beta2) + gradient * gradient * np.float32(1 - beta2)
            variance = stored(np.sqrt(variance), kind, random).astype(np.float32) ** 2
        result.append(float(np.mean(np.sqrt(variance) / np.sqrt(exact))))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="before and after the fall")
    arguments = parser.parse_args()
    print("| beta2 | rounding | steady | after the fall |\n| --- | --- | --- | --- |")
    for beta2 in (0.95, 0.999):
        for kind in ("to nearest", "FlashOptim", "stochastic"):
            steady, fallen = ratios(kind, beta2, arguments.steps)
            print(f"| {beta2} | {kind} | {steady:.3f} | {fallen:.3f} |", flush=True)


if __name__ == "__main__":
    main()
