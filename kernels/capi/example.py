#!/usr/bin/env python3
"""Fits weights to a target with libflashshard_codec, through ctypes and nothing else.

  python3 example.py [path of libflashshard_codec.so]

512 weights of 3 bytes (bf16 and an int8 correction) and momentum and variance of 1.0625 bytes each learn to equal a target with
AdamW. The weights that a model reads are the bf16 ones; the masters are decoded at the end to see how far they got.
"""

import ctypes
import random
import struct
import sys

COUNT, STEPS = 512, 300
FS_SPLIT24, FS_STATE_V2, FS_TYPE_FP32, FS_STOCHASTIC, FS_ADAMW = 0, 0, 1, 1, 0
FS_FRESH_V2_SCALE, FS_NORM_LIMBS = 0x4300, 10


class Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64)]


class Master(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("format", ctypes.c_int32), ("count", ctypes.c_int64),
                ("values", Buffer), ("weight", Buffer), ("correction", Buffer)]


class Tensor(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("weight_format", ctypes.c_int32), ("state_format", ctypes.c_int32),
                ("gradient_type", ctypes.c_int32), ("count", ctypes.c_int64), ("first_element", ctypes.c_int64),
                ("seed", ctypes.c_uint64), ("tensor_id", ctypes.c_uint64), ("gradient", Buffer), ("weight", Buffer),
                ("correction", Buffer), ("momentum", Buffer), ("momentum_scales", Buffer), ("variance", Buffer),
                ("variance_scales", Buffer)]


class Step(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("rule", ctypes.c_int32), ("rounding", ctypes.c_int32),
                ("nesterov", ctypes.c_int32), ("learning_rate", ctypes.c_double), ("beta1", ctypes.c_double),
                ("beta2", ctypes.c_double), ("epsilon", ctypes.c_double), ("dampening", ctypes.c_double),
                ("weight_decay", ctypes.c_double), ("peak_learning_rate", ctypes.c_double),
                ("gradient_factor", ctypes.c_double), ("t", ctypes.c_uint64)]


def buffer(array):
    return Buffer(ctypes.addressof(array), ctypes.sizeof(array))


def main():
    library = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libflashshard_codec.so.1")
    library.fs_last_error.restype = library.fs_version.restype = ctypes.c_char_p
    library.fs_instruction_set.restype = ctypes.c_char_p
    library.fs_add_squares.argtypes = [Buffer, ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]

    def call(function, *arguments):
        if function(*arguments) != 0:
            raise RuntimeError(library.fs_last_error().decode())

    random.seed(1)
    target = [random.uniform(-1, 1) for _ in range(COUNT)]
    masters, gradient = (ctypes.c_float * COUNT)(), (ctypes.c_float * COUNT)()
    weight, correction = (ctypes.c_uint16 * COUNT)(), (ctypes.c_int8 * COUNT)()
    momentum, variance = (ctypes.c_int8 * COUNT)(), (ctypes.c_uint8 * COUNT)()
    groups = COUNT // 32
    scales = [(ctypes.c_uint16 * groups)(*[FS_FRESH_V2_SCALE] * groups) for _ in range(2)]

    tensor = Tensor(ctypes.sizeof(Tensor), FS_SPLIT24, FS_STATE_V2, FS_TYPE_FP32, COUNT, 0, 7, 0, buffer(gradient),
                    buffer(weight), buffer(correction), buffer(momentum), buffer(scales[0]), buffer(variance),
                    buffer(scales[1]))
    for t in range(1, STEPS + 1):
        for i, half in enumerate(weight):
            value = struct.unpack("<f", struct.pack("<I", half << 16))[0]  # what a model would read
            gradient[i] = value - target[i]
        step = Step(ctypes.sizeof(Step), FS_ADAMW, FS_STOCHASTIC, 0, 0.02 * (1 - (t - 1) / STEPS), 0.9, 0.95, 1e-8, 0.0, 0.0,
                    0.0, 1.0, t)
        rejected = ctypes.c_int64()
        call(library.fs_apply_step, ctypes.byref(tensor), ctypes.byref(step), ctypes.byref(rejected))
        assert rejected.value == 0

    limbs, norm = (ctypes.c_int64 * FS_NORM_LIMBS)(), ctypes.c_double()
    call(library.fs_add_squares, buffer(gradient), FS_TYPE_FP32, COUNT, ctypes.addressof(limbs), None)
    call(library.fs_norm, limbs, ctypes.byref(norm))
    call(library.fs_decode_master, ctypes.byref(
        Master(ctypes.sizeof(Master), FS_SPLIT24, COUNT, buffer(masters), buffer(weight), buffer(correction))))
    error = max(abs(a - b) for a, b in zip(masters, target))
    print(f"flashshard_codec {library.fs_version().decode()}, {library.fs_instruction_set().decode()}: after {STEPS} steps the "
          f"largest error is {error:.1e}, the gradient's norm {norm.value:.1e}")

    step.learning_rate = -1.0
    if library.fs_apply_step(ctypes.byref(tensor), ctypes.byref(step), None) == 0:
        raise RuntimeError("a negative learning rate was accepted")
    print("refused:", library.fs_last_error().decode())
    return 0 if error < 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
