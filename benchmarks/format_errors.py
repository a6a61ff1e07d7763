#!/usr/bin/env python3
"""What each format loses, element by element: V2, FLASHOPTIM_V1 and fp32 state, through libflashshard_codec.

  benchmarks/format_errors.py [path of libflashshard_codec.so]

Python's standard library alone; synthetic values, one fixed seed, about three minutes. Prints the table of docs/numerics.md.
"""

import ctypes
import math
import pathlib
import random
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "kernels" / "capi"))
from example import Buffer, Master, Step, Tensor  # noqa: E402  (the binding of the C library's own example)

GROUP, COUNT = 32, 4096
V2, FP32, V1 = 0, 1, 2
SPLIT24, SPLIT32, CORRECTED24 = 0, 1, 4
ADAMW, NEAREST, STOCHASTIC = 0, 0, 1


class Moments(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("format", ctypes.c_int32), ("moment", ctypes.c_int32),
                ("reserved", ctypes.c_int32), ("count", ctypes.c_int64), ("values", Buffer), ("codes", Buffer),
                ("scales", Buffer)]


DEFAULT = ROOT / "build" / "libflashshard_codec.so"
library = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else str(DEFAULT))
library.fs_last_error.restype = ctypes.c_char_p


def call(function, *arguments):
    if function(*arguments) != 0:
        raise RuntimeError(library.fs_last_error().decode())


def buffer(array):
    return Buffer(ctypes.addressof(array), ctypes.sizeof(array)) if array is not None else Buffer(None, 0)


def moment_errors(state_format, moment):
    """Over magnitudes of 1e-12 to 1e6: error in the mean, and the shares flushed to zero and left out."""
    random.seed(3)
    error = flushed = lost = groups = elements = 0
    for exponent in range(-12, 7):
        for _ in range(40):
            truth = [random.gauss(0, 1) * 10**exponent for _ in range(GROUP)]
            if moment == 1:
                truth = [x * x for x in truth]
            values, codes, scale = (ctypes.c_float * GROUP)(*truth), (ctypes.c_uint8 * GROUP)(), (ctypes.c_uint16 * 1)()
            moments = Moments(ctypes.sizeof(Moments), state_format, moment, 0, GROUP, buffer(values), buffer(codes),
                              buffer(scale))
            truth, rejected, groups = list(values), ctypes.c_int64(), groups + 1
            call(library.fs_encode_moments, ctypes.byref(moments), ctypes.byref(rejected))
            lost += rejected.value
            if rejected.value:
                continue
            call(library.fs_decode_moments, ctypes.byref(moments))
            root = math.sqrt if moment == 1 else abs
            error += sum(abs(root(a) - root(b)) for a, b in zip(values, truth)) / sum(root(b) for b in truth)
            flushed += sum(a == 0 and b != 0 for a, b in zip(values, truth))
            elements += GROUP
    return f"{100 * error / (groups - lost):.1f} %, {100 * flushed / elements:.1f} % to zero, {100 * lost / groups:.1f} % left out"


class Run:
    """Weights under AdamW in one format."""

    def __init__(self, weight_format, state_format, rounding, initial, beta2, epsilon=1e-8):
        self.rounding, self.beta2, self.epsilon, self.t = rounding, beta2, epsilon, 0
        count = len(initial)
        corrections, codes = {SPLIT32: ctypes.c_int16}.get(weight_format, ctypes.c_int8), state_format != FP32
        state = ctypes.c_uint8 if codes else ctypes.c_float
        self.values = (ctypes.c_float * count)(*initial)
        self.gradient = (ctypes.c_float * count)()
        self.weight, self.correction = (ctypes.c_uint16 * count)(), (corrections * count)()
        self.states = [(state * count)() for _ in range(2)]
        fresh = [0x4300 if state_format == V2 else 0] * (count // GROUP)
        self.scales = [(ctypes.c_uint16 * len(fresh))(*fresh) if codes else None for _ in range(2)]
        self.master = Master(ctypes.sizeof(Master), weight_format, count, buffer(self.values), buffer(self.weight),
                             buffer(self.correction))
        call(library.fs_encode_master, ctypes.byref(self.master), None)
        self.tensor = Tensor(ctypes.sizeof(Tensor), weight_format, state_format, 1, count, 0, 7, 0, buffer(self.gradient),
                             buffer(self.weight), buffer(self.correction), buffer(self.states[0]), buffer(self.scales[0]),
                             buffer(self.states[1]), buffer(self.scales[1]))

    def step(self, gradient, learning_rate):
        self.gradient[:] = gradient
        self.t += 1
        step = Step(ctypes.sizeof(Step), ADAMW, self.rounding, 0, learning_rate, 0.9, self.beta2, self.epsilon, 0, 0, 0, 1, self.t)
        call(library.fs_apply_step, ctypes.byref(self.tensor), ctypes.byref(step), None)

    def weights(self):
        call(library.fs_decode_master, ctypes.byref(self.master))
        return list(self.values)


def drift(weight_format, state_format, rounding, learning_rate, steps=400):
    """Weights of 1 under a constant gradient: each step is one learning rate; how much of it remains."""
    run = Run(weight_format, state_format, rounding, [1.0] * COUNT, 0.999)
    for _ in range(steps):
        run.step([1.0] * COUNT, learning_rate)
    return f"{(1 - sum(run.weights()) / COUNT) / (steps * learning_rate):.2f}"


def longest_step(weight_format, state_format, rounding, spread, steps=150, learning_rate=1e-3):
    """Gradients whose sizes differ inside a group by exp(N(0, spread)); the longest step, in learning rates."""
    random.seed(4)
    sizes = [math.exp(random.gauss(0, spread)) for _ in range(COUNT)]
    run, before, longest = Run(weight_format, state_format, rounding, [1.0] * COUNT, 0.999), [1.0] * COUNT, 0.0
    for _ in range(steps):
        run.step([s * random.gauss(0, 1) for s in sizes], learning_rate)
        after = run.weights()
        longest = max(longest, max(abs(a - b) for a, b in zip(after, before)) / learning_rate)
        before = after
    return f"{longest:.3g} lr"


def way_without_gradient(weight_format, state_format, rounding, beta2, steps=240, learning_rate=1e-3):
    """One element of each group has gradients for 30 steps and none from then on, its neighbours always: root mean square of
    its way from step 60 on, in learning rates."""
    random.seed(6)
    run = Run(weight_format, state_format, rounding, [1.0] * COUNT, beta2)

    def step(active):
        run.step([random.gauss(0, 1) if active or i % GROUP else 0.0 for i in range(COUNT)], learning_rate)

    for t in range(60):
        step(active=t < 30)
    before = run.weights()[::GROUP]
    for _ in range(steps):
        step(active=False)
    ways = [(a - b) / learning_rate for a, b in zip(run.weights()[::GROUP], before)]
    return f"{math.sqrt(sum(w * w for w in ways) / len(ways)):.2f} lr"


def descent(weight_format, state_format, rounding, center, distance, rate, scale=1.0, steps=2000, count=1024):
    """A noisy quadratic around `center`, curvatures spread by exp(N(0, 1.5)): its loss at the end over that at the start.
    Gradients and epsilon are multiplied by `scale`, which changes no step of exact AdamW; the rate falls along a cosine."""
    random.seed(5)
    curvature = [0.01 * math.exp(random.gauss(0, 1.5)) for _ in range(count)]
    weights = [center + distance * random.gauss(0, 1) for _ in range(count)]
    run = Run(weight_format, state_format, rounding, weights, 0.999, 1e-8 * scale)

    def loss():
        return sum(h * (x - center) ** 2 for h, x in zip(curvature, run.weights()))

    start = loss()
    for t in range(steps):
        run.step([scale * (h * (x - center) + 0.02 * math.sqrt(h) * distance * random.gauss(0, 1))
                  for h, x in zip(curvature, run.weights())], rate * 0.5 * (1 + math.cos(math.pi * t / steps)))
    return f"{loss() / start:.2g}"


def main():
    formats = {"V1": (CORRECTED24, V1, NEAREST), "V2": (SPLIT24, V2, STOCHASTIC),
               "V2, `rounding: NEAREST`": (SPLIT24, V2, NEAREST), "fp32 state, 32-bit master": (SPLIT32, FP32, NEAREST)}
    rows = [("momentum of magnitude 1e-12 to 1e6: mean error",) + tuple(
                moment_errors(f[1], 0) if f[1] != FP32 else "0" for f in formats.values()),
            ("square root of the variance, the same",) + tuple(
                moment_errors(f[1], 1) if f[1] != FP32 else "0" for f in formats.values())]
    for rate in (1e-4, 1e-5, 1e-6):
        rows.append((f"weights of 1, steps of {rate:g}: share of the way gone",) + tuple(drift(*f, rate) for f in formats.values()))
    for spread in (1, 2, 3):
        rows.append((f"gradients spread by exp(N(0, {spread})): longest step",) + tuple(
            longest_step(*f, spread) for f in formats.values()))
    for beta2 in (0.95, 0.999):
        rows.append((f"no more gradients beside active neighbours, beta2 {beta2:g}: way in 240 steps",) + tuple(
            way_without_gradient(*f, beta2) for f in formats.values()))
    for scale in (1, 1e-5):
        rows.append((f"noisy quadratic, gradients x {scale:g}: loss, end / start",) + tuple(
            descent(*f, 0.0, 0.05, 1e-3, scale) for f in formats.values()))
    rows.append(("the same around weights of 1, rate 1e-5",) + tuple(descent(*f, 1.0, 5e-3, 1e-5) for f in formats.values()))
    for row in [("",) + tuple(formats), ("---",) * (1 + len(formats))] + rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
