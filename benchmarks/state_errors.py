#!/usr/bin/env python3
"""What each format would lose of the states of a real run: momenta and variances of a checkpoint with fp32 state are encoded
and decoded by libflashshard_codec, and the step that follows from them is compared with that of fp32. Needs numpy.

  mpirun -n 2 build/flashshard train --config launch/configs/quickstart.textproto --set optimizer.state=FP32 \\
      --set optimizer.master_weight_bits=32 --set run.seed=1 --set run.dir=runs/fp32
  benchmarks/state_errors.py runs/fp32/checkpoints/step-00000490

Matrices and embeddings, as in training: vectors keep fp32. Errors are normalised mean squares, |decoded - true|^2 / |true|^2,
over all elements; a step is m / (sqrt(v) + epsilon) with AdamW's bias corrections, in learning rates. Errors that a state has
gathered are seen in a closed loop: 100 steps from fresh states with the same random gradients for every format, normal, of the
deviations that the checkpoint's variances tell and a mean of 0.3 of these, states stored and read back each time, in up to 400
groups of every rank's part of a tensor. Prints the table of docs/numerics.md.
"""
import argparse
import ctypes
import json
import pathlib
import re
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "kernels" / "capi"))
from example import Buffer, Step, Tensor  # noqa: E402  (the binding of the C library's own example)

GROUP = 32
V2, FP32, V1, SPLIT32, FP32_GRADIENT, ADAMW = 0, 1, 2, 1, 1, 0
LOOP_STEPS, LOOP_GROUPS, LOOP_DRIFT = 100, 400, 0.3  # of each tensor; mean over deviation of a gradient
NEAREST, STOCHASTIC = 0, 1
SMALLEST = {V1: 0x3FF, V2: 0x4300}  # scale codes up to here
FORMATS = {"V1": (V1, NEAREST), "V2": (V2, STOCHASTIC), "V2, `rounding: NEAREST`": (V2, NEAREST)}


class Moments(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("format", ctypes.c_int32), ("moment", ctypes.c_int32),
                ("reserved", ctypes.c_int32), ("count", ctypes.c_int64), ("values", Buffer), ("codes", Buffer),
                ("scales", Buffer)]


def buffer(array):
    return Buffer(array.ctypes.data, array.nbytes)


class Codec:
    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.fs_last_error.restype = ctypes.c_char_p

    def call(self, function, *arguments):
        if getattr(self.library, function)(*arguments) != 0:
            raise RuntimeError(self.library.fs_last_error().decode())

    def encode(self, momentum, variance, state_format, rounding, tensor_id):
        """Codes of both as a step stores them. With beta 0 new moments are the gradient and its square."""
        count, groups = momentum.size, -(-momentum.size // GROUP)
        fresh = 0x4300 if state_format == V2 else 0
        results = []
        for values in (momentum, np.sqrt(variance)):
            gradient = np.ascontiguousarray(values, np.float32)
            weight, correction = np.zeros(count, np.uint16), np.zeros(count, np.int16)
            codes = [np.zeros(count, np.uint8) for _ in range(2)]
            scales = [np.full(groups, fresh, np.uint16) for _ in range(2)]
            tensor = Tensor(ctypes.sizeof(Tensor), SPLIT32, state_format, FP32_GRADIENT, count, 0, 42, tensor_id,
                            buffer(gradient), buffer(weight), buffer(correction), buffer(codes[0]), buffer(scales[0]),
                            buffer(codes[1]), buffer(scales[1]))
            step = Step(ctypes.sizeof(Step), ADAMW, rounding, 0, 0, 0, 0, 1e-8, 0, 0, 0, 1, 1)
            rejected = ctypes.c_int64()
            self.call("fs_apply_step", ctypes.byref(tensor), ctypes.byref(step), ctypes.byref(rejected))
            if rejected.value:
                raise RuntimeError(f"{rejected.value} groups lie outside the format")
            results.append((codes[len(results)], scales[len(results)]))
        return results

    def decode(self, moment, codes, scales, state_format):
        values = np.zeros(codes.size, np.float32)
        call = Moments(ctypes.sizeof(Moments), state_format, moment, 0, codes.size, buffer(values), buffer(codes), buffer(scales))
        self.call("fs_decode_moments", ctypes.byref(call))
        return values.astype(np.float64)


def matrices(folder):
    """(name, momentum, variance) of every matrix, as fp32, rank by rank."""
    for path in sorted(folder.glob("state-*.safetensors")):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r", 8 + length)

        def read(name):
            entry = header[name]
            if entry["dtype"] != "F32":
                sys.exit(f"error: {name} in {path} is {entry['dtype']}: the run must have optimizer.state FP32")
            begin, end = entry["data_offsets"]
            return data[begin:end].view(np.float32)

        for name, entry in header.items():
            if name.endswith(".momentum") and len(entry["shape"]) == 2:
                base = name.removesuffix(".momentum")
                if base + ".variance" in header:
                    yield base, read(name), read(base + ".variance")


def adamw_step(m, root, betas, epsilon, t):
    """The step in learning rates."""
    return (m / (1 - betas[0] ** t)) / (root / np.sqrt(1 - betas[1] ** t) + epsilon)


class Loop:
    """States of one format under AdamW."""

    def __init__(self, codec, state_format, rounding, count, betas):
        self.codec, self.format, self.betas, self.rounding, self.t = codec, state_format, betas, rounding, 0
        groups, code = -(-count // GROUP), np.float32 if state_format == FP32 else np.uint8
        self.states = [np.zeros(count, code) for _ in range(2)]
        fresh = 0x4300 if state_format == V2 else 0
        self.scales = [np.full(0 if state_format == FP32 else groups, fresh, np.uint16) for _ in range(2)]
        self.gradient, self.weight, self.correction = np.zeros(count, np.float32), np.zeros(count, np.uint16), np.zeros(count, np.int16)
        self.tensor = Tensor(ctypes.sizeof(Tensor), SPLIT32, state_format, FP32_GRADIENT, count, 0, 42, 0, buffer(self.gradient),
                             buffer(self.weight), buffer(self.correction), buffer(self.states[0]), buffer(self.scales[0]),
                             buffer(self.states[1]), buffer(self.scales[1]))

    def step(self, gradient):
        self.gradient[:] = gradient
        self.t += 1
        step = Step(ctypes.sizeof(Step), ADAMW, self.rounding, 0, 0, *self.betas, 1e-8, 0, 0, 0, 1, self.t)  # rate 0
        rejected = ctypes.c_int64()
        self.codec.call("fs_apply_step", ctypes.byref(self.tensor), ctypes.byref(step), ctypes.byref(rejected))
        if rejected.value:
            raise RuntimeError(f"{rejected.value} groups lie outside the format")

    def last_step(self, epsilon):
        """As the stored states tell it."""
        m, v = (s.astype(np.float64) if self.format == FP32 else self.codec.decode(i, s, self.scales[i], self.format)
                for i, s in enumerate(self.states))
        return adamw_step(m, np.sqrt(v), self.betas, epsilon, self.t)


def closed_loop(codec, deviations, betas, epsilon):
    """Format -> (the step's error in normalised squares, its component along fp32's step)."""
    random = np.random.default_rng(7)
    loops = {name: Loop(codec, *f, deviations.size, betas) for name, f in (FORMATS | {"fp32": (FP32, NEAREST)}).items()}
    for _ in range(LOOP_STEPS):
        gradient = deviations * (LOOP_DRIFT + random.standard_normal(deviations.size))
        for loop in loops.values():
            loop.step(gradient)
    true = loops.pop("fp32").last_step(epsilon)
    power = np.sum(true**2)
    steps = {name: loop.last_step(epsilon) for name, loop in loops.items()}
    return {name: (np.sum((s - true) ** 2) / power, np.sum(s * true) / power) for name, s in steps.items()}


class Sums:
    """Of one format over all tensors."""

    def __init__(self):
        self.elements = self.zero_momenta = self.zero_variances = self.small_variances = self.scales = self.edge_scales = 0
        self.error, self.truth = np.zeros(3), np.zeros(3)  # momentum, sqrt(v), step
        self.longest = 0.0

    def add(self, decoded, true, codes, scales, smallest):
        for i, (a, b) in enumerate(zip(decoded, true)):
            self.error[i] += np.sum((a - b) ** 2)
            self.truth[i] += np.sum(b**2)
        self.elements += codes[0].size
        self.zero_momenta += np.count_nonzero((codes[0] == 0) & (true[0] != 0))
        self.zero_variances += np.count_nonzero((codes[1] == 0) & (true[0] != 0))
        self.small_variances += np.count_nonzero(codes[1] == 1)
        self.scales += sum(s.size for s in scales)
        self.edge_scales += sum(np.count_nonzero(s <= smallest) for s in scales)
        self.longest = max(self.longest, np.max(np.abs(decoded[2])))

    def column(self):
        momentum, root, step = self.error / self.truth
        return [f"{momentum:.1e}", f"{root:.1e}", f"{step:.1e}", self.share(self.zero_momenta),
                self.share(self.zero_variances), self.share(self.small_variances), f"{100 * self.edge_scales / self.scales:.1f} %", f"{self.longest:.3g} lr"]

    def share(self, count):
        return f"{100 * count / self.elements:.3f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path, help="a step's folder, of a run with optimizer.state FP32")
    parser.add_argument("--tensors", default="", metavar="REGEX", help="only tensors with this in their names")
    parser.add_argument("--library", type=pathlib.Path, default=ROOT / "build" / "libflashshard_codec.so")
    arguments = parser.parse_args()
    try:
        manifest = json.loads((arguments.checkpoint / "manifest.json").read_text())
    except OSError as error:
        sys.exit(f"error: {error}")
    setting = {name: float(re.search(rf"\b{name}: ([-+.\de]+)", manifest["config"])[1]) for name in ("beta1", "beta2", "epsilon")}
    updates = int(manifest["applied_updates"])
    betas = (setting["beta1"], setting["beta2"])

    def step(momentum, root):
        return adamw_step(momentum, root, betas, setting["epsilon"], updates)

    codec, sums, longest = Codec(arguments.library), {name: Sums() for name in FORMATS}, 0.0
    random, deviations = np.random.default_rng(8), []
    for index, (tensor, momentum, variance) in enumerate(matrices(arguments.checkpoint)):
        if not re.search(arguments.tensors, tensor):
            continue
        m, root = momentum.astype(np.float64), np.sqrt(variance.astype(np.float64))
        true = (m, root, step(m, root))
        groups = root[:root.size // GROUP * GROUP].reshape(-1, GROUP)
        deviations.append(groups[random.permutation(len(groups))[:LOOP_GROUPS]].ravel())
        longest = max(longest, np.max(np.abs(true[2])))
        for name, (state_format, rounding) in FORMATS.items():
            encoded = codec.encode(momentum, variance, state_format, rounding, index)
            decoded_m = codec.decode(0, *encoded[0], state_format)
            decoded_root = np.sqrt(codec.decode(1, *encoded[1], state_format))
            codes = (encoded[0][0], encoded[1][0])
            scales = (encoded[0][1], encoded[1][1])
            sums[name].add((decoded_m, decoded_root, step(decoded_m, decoded_root)), true, codes, scales, SMALLEST[state_format])
    if not any(s.elements for s in sums.values()):
        sys.exit(f"error: {arguments.checkpoint} has no such matrix with momentum and variance")

    rows = ["momentum: error", "square root of the variance: error", "step: error", "momentum codes 0, momentum not",
            "variance codes 0, momentum not", "variance codes 1", "scales at the format's smallest (V1: fp16 subnormals)",
            f"longest step (fp32: {longest:.3g} lr)"]
    elements = next(iter(sums.values())).elements
    print(f"{manifest['model']}, {elements:,} elements of matrices after {updates} updates, beta2 {setting['beta2']:g}\n")
    looped = closed_loop(codec, np.concatenate(deviations), betas, setting["epsilon"])
    rows += [f"step after {LOOP_STEPS} steps in a closed loop: error", "the same: along fp32's step"]
    columns = [s.column() + [f"{looped[name][0]:.1e}", f"{looped[name][1]:.4f}"] for name, s in sums.items()]
    for row in [("", *FORMATS), ("---",) * (1 + len(FORMATS)), *zip(rows, *columns)]:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
