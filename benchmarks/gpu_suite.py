#!/usr/bin/env python3
"""Times the optimizer steps on a GPU: FlashShard's kernels in every rule and format, FlashOptim's Triton kernels and PyTorch's
fused optimizers, beside a device memory copy in the same run. benchmarks/gpu_suite.sh calls it.

  gpu_suite.py --library libflashshard_codec_cuda.so --json FILE [--flashoptim FOLDER] [--parameters N]

A row is one optimizer step over one tensor of N parameters: the median over the repeats by CUDA events. Bytes are what a step has
to read and write: gradient, and weight, correction and states twice. The copy's are read and written, too.
"""
import argparse
import ctypes
import json
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "kernels" / "capi")]  # a package has all in one folder
from example import Buffer, Step, Tensor  # noqa: E402

WARM_UPS, REPEATS = 3, 15
SMALL_TENSORS = 512
# The enumerators of kernels/capi/flashshard.h.
WEIGHTS = {"split24": 0, "split32": 1, "bf16": 2, "fp32": 3, "corrected24": 4, "corrected32": 5, "fp16 corrected24": 6,
           "fp16 corrected32": 7, "fp16": 8}
STATES = {"V2": 0, "fp32": 1, "V1": 2}
RULES = {"AdamW": 0, "Adam": 1, "Lion": 2, "SGD": 3, "SGDW": 4}
CORRECTION_BYTES = {"split24": 1, "split32": 2, "corrected24": 1, "corrected32": 2, "fp16 corrected24": 1, "fp16 corrected32": 2}
FORMATS = [("V2", "split24"), ("V2", "split32"), ("V2", "bf16"), ("V2", "fp32"), ("V1", "corrected24"), ("V1", "corrected32"),
           ("V1", "bf16"), ("V1", "fp16 corrected24"), ("V1", "fp16 corrected32"), ("V1", "fp16"), ("V1", "fp32"),
           ("fp32", "split24"), ("fp32", "split32"), ("fp32", "bf16"), ("fp32", "fp32")]
GROUP, FRESH_V2_SCALE = 32, 0x4300


class FlashShard:
    """A tensor, its states and its step."""

    def __init__(self, library, torch, count, rule, state, weight, *, beta1=0.9, nesterov=False, stochastic=True, pieces=1):
        self.library, self.torch = library, torch
        fp32_gradient = weight == "fp32"
        momentum, variance = beta1 > 0, rule in ("AdamW", "Adam")
        gradient_type = torch.float32 if fp32_gradient else torch.bfloat16
        weight_type = {"fp32": torch.float32}.get(weight, torch.float16 if weight.startswith("fp16") else torch.bfloat16)
        self.keep = []  # tensors whose memory the step works in

        def memory(tensor):
            self.keep.append(tensor)
            return tensor

        gradient = memory(torch.randn(count, device="cuda").mul_(1e-3).to(gradient_type))
        weights = memory(torch.randn(count, device="cuda").mul_(2e-2).to(weight_type))
        correction = memory(torch.zeros(count * CORRECTION_BYTES.get(weight, 0), dtype=torch.uint8, device="cuda"))
        codes = torch.float32 if state == "fp32" else torch.uint8
        groups = 0 if state == "fp32" else count // GROUP
        fresh = FRESH_V2_SCALE if state == "V2" else 0
        moments = []
        for exists in (momentum, variance):
            moments.append(memory(torch.zeros(count if exists else 0, dtype=codes, device="cuda")))
            moments.append(memory(torch.full((groups if exists else 0,), fresh, dtype=torch.int16, device="cuda")))
        self.rejected = torch.zeros(1, dtype=torch.int64, device="cuda")
        self.step_bytes = gradient.nbytes + 2 * sum(t.nbytes for t in [weights, correction, *moments])

        def part(tensor, index):
            size = tensor.nbytes // pieces
            return Buffer(tensor.data_ptr() + index * size if size else None, size)

        arrays = [gradient, weights, correction, *moments]
        self.tensors = (Tensor * pieces)(*[
            Tensor(ctypes.sizeof(Tensor), WEIGHTS[weight], STATES[state], int(fp32_gradient), count // pieces, 0, 1, i,
                   *[part(array, i) for array in arrays]) for i in range(pieces)])
        self.step = Step(ctypes.sizeof(Step), RULES[rule], int(stochastic), int(nesterov), 1e-4, beta1, 0.95, 1e-8, 0.0, 0.1, 0.0,
                         1.0, 0)

    def __call__(self):
        self.step.t += 1
        stream = ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)
        status = self.library.fs_cuda_apply_steps(self.tensors, ctypes.c_int64(len(self.tensors)), ctypes.byref(self.step),
                                                  ctypes.c_void_p(self.rejected.data_ptr()), stream)
        if status:
            raise RuntimeError(self.library.fs_last_error().decode())

    def check(self):
        if int(self.rejected.item()):
            raise RuntimeError(f"{int(self.rejected.item())} groups were rejected")


def milliseconds(torch, step):
    """Median time of a call."""
    for _ in range(WARM_UPS):
        step()
    times = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


class Suite:
    def __init__(self, torch, count):
        self.torch, self.count, self.rows = torch, count, []
        source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        self.copy_bytes_per_second = 2 * source.nbytes / milliseconds(torch, lambda: target.copy_(source)) * 1e3

    def measure(self, implementation, rule, formats, step, step_bytes):
        time = milliseconds(self.torch, step)
        rate = step_bytes / time * 1e3
        self.rows.append({"implementation": implementation, "rule": rule, "formats": formats, "milliseconds": time,
                          "bytes_per_parameter": step_bytes / self.count, "parameters_per_second": self.count / time * 1e3,
                          "bytes_per_second": rate, "fraction_of_copy": rate / self.copy_bytes_per_second})
        row = self.rows[-1]
        print(f"{implementation:12} {rule:14} {formats:32} {time:8.3f} {row['bytes_per_parameter']:7.3f} "
              f"{row['parameters_per_second'] / 1e9:8.1f} {rate / 1e12:6.2f} {100 * row['fraction_of_copy']:5.1f} %", flush=True)

    def flashshard(self, library, rule, state, weight, **options):
        name = rule + (" Nesterov" if options.get("nesterov") else " plain" if options.get("beta1") == 0 else "")
        formats = f"{state} state, {weight}"
        if not options.get("stochastic", True):
            formats += ", to nearest"
        if options.get("pieces", 1) > 1:
            formats += f", {options['pieces']} tensors"
        step = FlashShard(library, self.torch, self.count, rule, state, weight, **options)
        self.measure("FlashShard", name, formats, step, step.step_bytes)
        step.check()

    def peer(self, implementation, rule, formats, make, dtype, bytes_per_parameter):
        """make(parameters) is an optimizer of the peer."""
        torch = self.torch
        parameter = torch.nn.Parameter(torch.randn(self.count, device="cuda").mul_(2e-2).to(dtype))
        parameter.grad = torch.randn(self.count, device="cuda").mul_(1e-3).to(dtype)
        optimizer = make([parameter])
        self.measure(implementation, rule, formats, optimizer.step, bytes_per_parameter * self.count)


def flashshard_rows(suite, library):
    for state, weight in FORMATS:
        for rule in RULES:
            suite.flashshard(library, rule, state, weight)
        suite.flashshard(library, "SGD", state, weight, nesterov=True)
    for weight in ("split24", "split32", "bf16", "fp32"):
        suite.flashshard(library, "SGD", "fp32", weight, beta1=0.0)
    suite.flashshard(library, "AdamW", "V2", "split24", stochastic=False)
    suite.flashshard(library, "AdamW", "V2", "split24", pieces=SMALL_TENSORS)


def flashoptim_rows(suite, torch):
    import flashoptim
    for bits, correction in ((24, 1), (32, 2), (None, 0)):
        def formats(dtype):
            return f"V1 state, {dtype} master {bits or 'none'}"
        for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
            base = 2 + 2 * (2 + correction)  # gradient, weight and correction
            options = {"lr": 1e-4, "master_weight_bits": bits}
            suite.peer("FlashOptim", "AdamW", formats(name),
                       lambda p: flashoptim.FlashAdamW(p, betas=(0.9, 0.95), weight_decay=0.1, **options), dtype, base + 4.25)
            suite.peer("FlashOptim", "Lion", formats(name),
                       lambda p: flashoptim.FlashLion(p, weight_decay=0.1, **options), dtype, base + 2.125)
            suite.peer("FlashOptim", "Adam", formats(name),
                       lambda p: flashoptim.FlashAdam(p, betas=(0.9, 0.95), weight_decay=0.1, **options), dtype, base + 4.25)
            for rule, make in (("SGD", flashoptim.FlashSGD), ("SGDW", flashoptim.FlashSGDW)):
                suite.peer("FlashOptim", rule, formats(name), lambda p: make(p, momentum=0.9, **options), dtype, base + 2.125)


def torch_rows(suite, torch):
    for dtype, name, size in ((torch.float32, "fp32", 4), (torch.bfloat16, "bf16", 2)):
        formats = f"{name} state, {name}"
        suite.peer("PyTorch", "AdamW", formats, lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True), dtype, 7 * size)
        suite.peer("PyTorch", "Adam", formats, lambda p: torch.optim.Adam(p, lr=1e-4, fused=True), dtype, 7 * size)
        suite.peer("PyTorch", "SGD", formats, lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9, fused=True), dtype, 5 * size)


def summary(suite):
    def best(implementation, formats):
        return max((row["parameters_per_second"] for row in suite.rows if row["implementation"] == implementation
                    and row["rule"] == "AdamW" and row["formats"] == formats), default=None)

    ours = next(row for row in suite.rows if row["rule"] == "AdamW" and row["formats"] == "V2 state, split24")
    def verdict(value, goal):
        return "reached" if value >= goal else "NOT reached"

    print(f"\nAdamW, V2, 24-bit masters: {100 * ours['fraction_of_copy']:.1f} % of the memory copy "
          f"(goal 90: {verdict(ours['fraction_of_copy'], 0.9)})")
    for name, formats in (("FlashOptim", "V1 state, bf16 master 24"), ("PyTorch", "fp32 state, fp32")):
        peer = best(name, formats)
        if peer:
            times = ours["parameters_per_second"] / peer
            print(f"  {times:.2f} times {name}'s AdamW ({formats}; goal above 1: {verdict(times, 1)})")
        else:
            print(f"  {name}'s AdamW ({formats}) was not measured")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True)
    parser.add_argument("--json", required=True, help="where the raw numbers go")
    parser.add_argument("--flashoptim", help="folder with the package, if it is not installed")
    parser.add_argument("--parameters", type=int, default=1 << 28, help="multiple of 16384 (default: 2^28)")
    parser.add_argument("--driver", default="unknown")
    options = parser.parse_args()
    if options.parameters < GROUP * SMALL_TENSORS or options.parameters % (GROUP * SMALL_TENSORS):
        parser.error(f"--parameters must be a multiple of {GROUP * SMALL_TENSORS}")
    if options.flashoptim:
        sys.path.insert(0, options.flashoptim)
    import torch
    if not torch.cuda.is_available():
        sys.exit("error: PyTorch sees no CUDA device")
    library = ctypes.CDLL(options.library)
    library.fs_last_error.restype = ctypes.c_char_p

    properties = torch.cuda.get_device_properties(0)
    machine = {"device": properties.name, "memory_bytes": properties.total_memory, "multiprocessors": properties.multi_processor_count,
               "driver": options.driver, "cuda": torch.version.cuda, "torch": torch.__version__}
    suite = Suite(torch, options.parameters)
    print(f"{machine['device']}, driver {machine['driver']}, CUDA {machine['cuda']}, PyTorch {machine['torch']}; "
          f"{options.parameters} parameters; median of {REPEATS} steps; "
          f"memory copy {suite.copy_bytes_per_second / 1e12:.2f} TB/s read and written\n")
    print(f"{'':12} {'rule':14} {'formats':32} {'ms':>8} {'bytes/p':>7} {'1e9 p/s':>8} {'TB/s':>6} of copy")
    missing = []
    flashshard_rows(suite, library)
    for name, rows in (("PyTorch", torch_rows), ("FlashOptim", flashoptim_rows)):
        try:
            rows(suite, torch)
        except Exception as error:  # a peer that is not there, or does not run here, takes nothing from the others
            missing.append(f"{name}: {error}")
            print(f"{name} was left out: {error}")
    summary(suite)
    result = {"machine": machine, "parameters": options.parameters, "repeats": REPEATS,
              "copy_bytes_per_second": suite.copy_bytes_per_second, "rows": suite.rows, "left_out": missing}
    pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
