#!/usr/bin/env python3
"""Writes flashoptim_codecs.bin and flashoptim_updates.bin: what FlashOptim's own kernels (PyPI flashoptim 0.1.4) give.

No GPU is needed: the package's Triton kernels run in Triton's interpreter (TRITON_INTERPRET=1), where NumPy is the arithmetic.
Three things stand in for what a GPU has and the interpreter has not: libdevice's copysign and pow (NumPy's), fp32 <-> bf16
conversion to nearest even (the interpreter truncates, and errs for subnormals), and exact powers of two from exp2.

All little-endian. Codecs, in this order:
  momentum, then variance: values f32[N], codes i8/u8[N], scales f16[ceil(N/32)], decoded f32[N];     N = 1293, 1281
  momentum codes and scales of the first 1, 31 and 45 of the values: codes, scales each
  for weights bf16 and fp16, for corrections i8 and i16: values f32[1500], weights u16, corrections, decoded f32
Updates, N = 141, the third step: lr, beta1, beta2, epsilon, decay, 1 - beta1^3, 1 - beta2^3 f32; weights f32[N], gradients
f32[N], momentum codes i8[N], scales f16[5], variance codes u8[N], scales f16[5]; bf16 weights u16[N] and corrections i8[N];
then for AdamW, Adam, Lion, SGD, SGDW, SGD with Nesterov's momentum (the last three momentum beta1, dampening 0.25 for SGD and
SGDW): from fp32 weights with fp32 states: weights, momentum, variance f32[N]; from fp32 weights with codes: weights f32[N],
momentum codes and scales, variance codes and scales; from bf16 weights with codes and corrections: weights u16[N], corrections
i8[N]. Rules without a variance leave it as it was. Then for bf16 weights with i16 corrections, fp16 with i8 and fp16 with i16:
weights u16[N] and corrections before the step; and after it for each of the rules.

Run with PyTorch, Triton 3.x and flashoptim 0.1.4: python3 make_flashoptim_golden.py
"""

import os
import pathlib
import types

os.environ["TRITON_INTERPRET"] = "1"

import flashoptim.optimizers as fo
import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter

HERE = pathlib.Path(__file__).parent
GROUP = 32
random = np.random.default_rng(20240609)


# ---- what a GPU has and the interpreter has not ----

def nearest_bf16(data, source, target, rounding, original=interpreter._convert_float):
    if source == tl.float32 and target == tl.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16).view(torch.uint16).numpy()
    if source == tl.bfloat16 and target == tl.float32:
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return original(data, source, target, rounding)


def exact_exp2(self, arg):
    assert (arg.data == np.floor(arg.data)).all()
    return interpreter.TensorHandle(np.ldexp(np.float32(1), arg.data.astype(np.int32)), arg.dtype.scalar)


def copysign(a, b):
    return tl.tensor(interpreter.TensorHandle(np.copysign(a.handle.data, b.handle.data), a.handle.dtype.scalar), a.type)


def power(base, exponent):
    return float(np.power(np.float32(base), np.float32(exponent)))


interpreter._convert_float = nearest_bf16
interpreter.InterpreterBuilder.create_exp2 = exact_exp2
fo.libdevice = types.SimpleNamespace(copysign=copysign, pow=power)


# ---- codecs ----

def groups_of(n):
    return (n + GROUP - 1) // GROUP


def quantize(values, signed):
    n = len(values)
    codes = torch.empty(n, dtype=torch.int8 if signed else torch.uint8)
    scales = torch.empty(groups_of(n), dtype=torch.float16)
    fo._triton_quantize_kernel.fn[(1,)](
        torch.from_numpy(values), codes, scales, n, 127.0 if signed else 255.0, tl.int8 if signed else tl.uint8,
        GROUP, not signed, signed, BLOCK_SIZE_N=1024)
    return codes.numpy(), scales.numpy()


def dequantize(codes, scales, signed):
    out = torch.empty(len(codes), dtype=torch.float32)
    fo._triton_dequantize_kernel.fn[(1,)](
        torch.from_numpy(codes), torch.from_numpy(scales).float(), out, len(codes), 127.0 if signed else 255.0,
        GROUP, not signed, signed, BLOCK_SIZE_N=1024)
    return out.numpy()


def signed_ties():
    """Values whose code against a maximum of 1 lies exactly between two integers, as fp32 evaluates it."""
    ties = []
    for k in range(127):
        y = (k + 0.5) / 127
        u = np.float32(y / (2 - y))
        near = (np.arange(-200, 201) + int(u.view(np.uint32))).astype(np.uint32).view(np.float32)
        code = (np.float32(2) * near) / (np.float32(1) + near) * np.float32(127)
        ties += list(near[code == np.float32(k + 0.5)][:1])
    return np.array(ties, dtype=np.float32)


def root_ties():
    """Variances whose root's code against a maximum of 1 lies exactly between two integers, as fp32 evaluates it."""
    ties = []
    for k in range(255):
        v = np.float32(((k + 0.5) / 255) ** 2)
        near = (np.arange(-200, 201) + int(v.view(np.uint32))).astype(np.uint32).view(np.float32)
        ties += list(near[np.sqrt(near) * np.float32(255) == np.float32(k + 0.5)][:1])
    return np.array(ties, dtype=np.float32)


def moment_values(n, signed):
    values = np.zeros(n, dtype=np.float32)
    least, most = (-126, 15.99) if signed else (-120, 31.9)  # of the variance's root: half of it
    for g in range(groups_of(n)):
        magnitude = np.exp2(random.uniform(least, most) if g % 2 else random.uniform(-30, 8))
        part = random.standard_normal(GROUP) * np.exp2(random.uniform(-12, 0, GROUP))
        part *= magnitude / np.abs(part).max()
        values[g * GROUP:(g + 1) * GROUP] = part.astype(np.float32)[:max(0, n - g * GROUP)]
    values[0:32] = 0
    values[3] = -0.0
    values[32:64] = np.float32(1e-13) * random.standard_normal(32)  # below the floor of the scale
    values[64:96] = np.arange(32, dtype=np.uint32).view(np.float32)  # subnormals
    if signed:
        ties = signed_ties()[:62]
        table = np.concatenate([[1], ties[:31], [-1], -ties[:31], [1], ties[31:], [-1], -ties[31:]])
        values[96:96 + len(table)] = np.float32(1) * table
        values[256:288] = np.float32(65519.996) * random.uniform(-1, 1, 32)
        values[260] = 65519.996  # the largest whose fp16 scale is finite
    else:
        values = np.abs(values)
        values[96:128] = ((np.arange(32) + 0.5) * 8 / 255) ** 2
        values[127] = 1.0
        values[256:288] = np.float32(4.29e9) * random.uniform(0, 1, 32)
        ties = root_ties()
        ties = ties[:len(ties) // 31 * 31].reshape(-1, 31)
        values[288:288 + 32 * len(ties)] = np.concatenate([np.ones((len(ties), 1), np.float32), ties], axis=1).ravel()
    return values


def weight_values(n, largest_bits):
    bits = random.integers(0, largest_bits + 1, n, dtype=np.uint32) | (random.integers(0, 2, n, dtype=np.uint32) << 31)
    special = [0, 1, 0x7FFF, 0x8000, 0x8001, 0x007FFFFF, 0x00800000, 0x00807FFF, 0x00808000, 0x00818000, largest_bits,
               largest_bits - 1, 0x3F800000, 0x3F7FFFFF, 0x3F7F8000, 0x3F7F8001, 0x3F808000, 0x3F818000, 0x3F801000,
               0x3F803000, 0x387FFFFF, 0x38800000, 0x33000000, 0x33000001, 0x32FFFFFF,
               # Half of the way to the midpoint: 127 r / 2^12 (fp16) and 127 r / 2^15 (bf16) are ties there alone, at 63.5,
               # where to even and away from zero are the same.
               0x3F800800, 0x3F801800, 0x3F802800, 0x38800800, 0x38801800, 0x477FC800, 0x3F804000, 0x3F80C000, 0x3F814000,
               0x00804000, 0x477E4000]
    bits[:2 * len(special)] = special + [s | 0x80000000 for s in special]
    ordinary = slice(2 * len(special), 2 * len(special) + 400)
    bits[ordinary] = random.standard_normal(400).astype(np.float32).view(np.uint32)
    return bits.view(np.float32)


def error_correction(values, dtype, correction):
    n = len(values)
    weight = torch.from_numpy(values).to(dtype)
    codes, decoded = torch.empty(n, dtype=correction), torch.empty(n, dtype=torch.float32)
    mantissa = fo._NUM_MANTISSA_BITS[dtype]
    largest, triton_type = (127, tl.int8) if correction == torch.int8 else (32767, tl.int16)
    fo._compute_ecc_bits_kernel[(1,)](torch.from_numpy(values), weight, codes, n, 1024, triton_type, mantissa, largest)
    fo._reconstruct_fp32_kernel[(1,)](weight, codes, decoded, n, 1024, mantissa, largest)
    return weight.view(torch.uint16).numpy(), codes.numpy(), decoded.numpy()


record = []
for signed, n in ((True, 1293), (False, 1281)):
    values = moment_values(n, signed)
    codes, scales = quantize(values, signed)
    assert np.isfinite(scales).all()
    record += [values, codes, scales, dequantize(codes, scales, signed)]
for n in (1, 31, 45):
    record += list(quantize(np.ascontiguousarray(record[0][600:600 + n]), True))
for dtype, largest_bits in ((torch.bfloat16, 0x7F7F7FFF), (torch.float16, 0x477FEFFF)):
    for correction in (torch.int8, torch.int16):
        values = weight_values(1500, largest_bits)
        record += [values, *error_correction(values, dtype, correction)]
(HERE / "flashoptim_codecs.bin").write_bytes(b"".join(a.tobytes() for a in record))


# ---- updates ----

N, STEP = 141, 3
# Arguments of a kernel are fp32; here they are Python's floats with fp32's values, so that a difference from 1 is fp32's.
LR, BETA1, BETA2, EPSILON, DECAY, DAMPENING = (float(np.float32(x)) for x in (3e-3, 0.9, 0.95, 1e-8, 0.01, 0.25))
weights = (random.standard_normal(N) * np.exp2(random.integers(-6, 3, N))).astype(np.float32)
gradients = (random.standard_normal(N) * np.exp2(random.integers(-12, 2, N))).astype(np.float32)
momentum = quantize((random.standard_normal(N) * 0.1).astype(np.float32), True)
variance = quantize(random.uniform(0.001, 0.02, N).astype(np.float32), False)
narrow, corrections, _ = error_correction(weights, torch.bfloat16, torch.int8)
f32 = np.float32
record = [np.array([LR, BETA1, BETA2, EPSILON, DECAY, f32(1) - np.power(f32(BETA1), f32(STEP)),
                    f32(1) - np.power(f32(BETA2), f32(STEP))], dtype=np.float32),
          weights, gradients, *momentum, *variance, narrow, corrections]


def step(rule, parameter, errors, m, v, codes):
    """One call of the package's kernel; everything is changed in place."""
    use_ecc = errors is not None
    largest, error_type = (32767, tl.int16) if use_ecc and errors.dtype == torch.int16 else (127, tl.int8)
    errors = errors if use_ecc else parameter
    parameter_type = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[parameter.dtype]
    common = {"PARAM_DTYPE": parameter_type, "USE_ECC": use_ecc,
              "QUANTIZE_OPTIM_STATES": codes, "SIGNED_ERROR_T": error_type, "GROUP_SIZE": GROUP,
              "NUM_MANTISSA_BITS": fo._NUM_MANTISSA_BITS[parameter.dtype], "SIGNED_MAX_VAL": largest,
              "BLOCK_SIZE_N": 1024}
    gradient = torch.from_numpy(gradients)
    if rule in ("adamw", "adam"):
        fo._triton_adam_kernel[(1,)](*m, *v, parameter, gradient, errors, N, LR, BETA1, BETA2, EPSILON, DECAY, STEP,
                                     DECOUPLED_WEIGHT_DECAY=rule == "adamw", **common)
        return
    lion = rule == "lion"
    gain = BETA1 if lion else 1.0 if rule == "nesterov" else 1.0 - DAMPENING
    fo._triton_momentum_kernel[(1,)](*m, parameter, gradient, errors, N, LR, BETA2 if lion else BETA1, gain, DECAY,
                                     DO_LION=lion, NESTEROV=rule == "nesterov",
                                     DECOUPLED_WEIGHT_DECAY=rule == "sgdw", **common)


def tensors(arrays):
    return [torch.from_numpy(a.copy()) for a in arrays]


def narrow_step(rule, dtype, weight, errors):
    """The step of a half-precision weight with corrections, on codes: weight and corrections after it."""
    parameter, errors = torch.from_numpy(weight.copy()).view(dtype), torch.from_numpy(errors.copy())
    step(rule, parameter, errors, tensors(momentum), tensors(variance), True)
    return [parameter.view(torch.uint16).numpy(), errors.numpy()]


RULES = ("adamw", "adam", "lion", "sgd", "sgdw", "nesterov")
for rule in RULES:
    parameter = torch.from_numpy(weights.copy())
    m = [torch.from_numpy(dequantize(*momentum, True)), torch.empty(groups_of(N), dtype=torch.float16)]
    v = [torch.from_numpy(dequantize(*variance, False)), torch.empty(groups_of(N), dtype=torch.float16)]
    step(rule, parameter, None, m, v, False)
    record += [parameter.numpy(), m[0].numpy(), v[0].numpy()]

    parameter, m, v = torch.from_numpy(weights.copy()), tensors(momentum), tensors(variance)
    step(rule, parameter, None, m, v, True)
    record += [parameter.numpy()] + [t.numpy() for t in m + v]

    record += narrow_step(rule, torch.bfloat16, narrow, corrections)
for dtype, correction in ((torch.bfloat16, torch.int16), (torch.float16, torch.int8), (torch.float16, torch.int16)):
    narrow, corrections, _ = error_correction(weights, dtype, correction)
    record += [narrow, corrections]
    for rule in RULES:
        record += narrow_step(rule, dtype, narrow, corrections)
(HERE / "flashoptim_updates.bin").write_bytes(b"".join(a.tobytes() for a in record))

for path in sorted(HERE.glob("flashoptim_*.bin")):
    print(path.name, path.stat().st_size, "bytes")
