#!/usr/bin/env python3
"""What zstd saves of a trained checkpoint and what that costs, by class of tensor: frames of 256 KiB as the shard files have them,
one core, through the system's libzstd.

    benchmarks/checkpoint_zstd.py runs/quickstart/checkpoints/step-00000490
    benchmarks/checkpoint_zstd.py STEP_FOLDER --levels 1,3,9 --most 8       # at most 8 MiB of a class

"Bytes apart" is what it would be if the two bytes of each number stood apart (all first bytes of a frame, then all second ones):
not a format that is written, since then no other program could read the file after `zstd -d`.
"""
import argparse
import ctypes
import ctypes.util
import json
import pathlib
import struct
import time

FRAME = 1 << 18
WIDTH = {"BF16": 2, "U16": 2, "I16": 2, "F16": 2, "F32": 4, "I8": 1, "U8": 1}

zstd = ctypes.CDLL(ctypes.util.find_library("zstd"))
for function in ("ZSTD_compress", "ZSTD_decompress", "ZSTD_compressBound"):
    getattr(zstd, function).restype = ctypes.c_size_t


def class_of(name):
    state = name.rsplit(".", 1)[1]
    if state in ("weight", "bias"):
        return "weights"
    return "scales" if state.endswith("_scale") else "correction" if state == "error_correction" else state


def read_classes(folder):
    """Bytes by class; matrices alone, since the few vectors keep fp32 state."""
    classes = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:8 + size])
        shards = json.loads(header.pop("__metadata__")["shards"])
        vectors = {name for name, shard in shards.items() if shard["of"][1] == 1}
        for name, tensor in header.items():
            if name in vectors or name.rsplit(".", 1)[0] in vectors:
                continue
            begin, end = (8 + size + at for at in tensor["data_offsets"])
            dtype, pieces = classes.setdefault(class_of(name), (tensor["dtype"], []))
            assert dtype == tensor["dtype"], name
            pieces.append(content[begin:end])
    return {name: (dtype, b"".join(pieces)) for name, (dtype, pieces) in classes.items()}


def measure(data, level):
    """Compressed bytes, and bytes a second of compression and of decompression in CPU time."""
    capacity = zstd.ZSTD_compressBound(ctypes.c_size_t(FRAME))
    out, back = ctypes.create_string_buffer(capacity), ctypes.create_string_buffer(FRAME)
    frames, seconds = [], [0.0, 0.0]
    for begin in range(0, len(data), FRAME):
        piece = data[begin:begin + FRAME]
        start = time.process_time()
        size = zstd.ZSTD_compress(out, ctypes.c_size_t(capacity), piece, ctypes.c_size_t(len(piece)), level)
        seconds[0] += time.process_time() - start
        frame = out.raw[:size]
        start = time.process_time()
        size = zstd.ZSTD_decompress(back, ctypes.c_size_t(FRAME), frame, ctypes.c_size_t(len(frame)))
        seconds[1] += time.process_time() - start
        assert size == len(piece) and back.raw[:size] == piece
        frames.append(len(frame))
    return sum(frames), len(data) / seconds[0], len(data) / seconds[1]


def apart(data, width):
    return b"".join(data[begin:begin + FRAME][byte::width] for begin in range(0, len(data), FRAME) for byte in range(width))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path, help="a step folder of plain shard files")
    parser.add_argument("--levels", default="1,3,9,19")
    parser.add_argument("--most", type=int, default=16, help="MiB of each class that are measured")
    arguments = parser.parse_args()
    levels = [int(level) for level in arguments.levels.split(",")]
    classes = read_classes(arguments.checkpoint)
    whole = sum(len(data) for _, data in classes.values())
    print("| class | share | level | left | compress MB/s | decompress MB/s | left with bytes apart |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    left, left_apart = dict.fromkeys(levels, 0.0), dict.fromkeys(levels, 0.0)
    for name, (dtype, data) in classes.items():
        share = len(data) / whole
        data = data[:arguments.most << 20]
        for level in levels:
            size, compress, decompress = measure(data, level)
            part, part_apart = size / len(data), size / len(data)
            if WIDTH[dtype] > 1:
                part_apart = measure(apart(data, WIDTH[dtype]), level)[0] / len(data)
            left[level] += share * part
            left_apart[level] += share * part_apart
            print(f"| {name} {dtype} | {share:.1%} | {level} | {part:.1%} | {compress / 1e6:.0f} | {decompress / 1e6:.0f} | "
                  f"{f'{part_apart:.1%}' if WIDTH[dtype] > 1 else ''} |", flush=True)
    for level in levels:
        print(f"| all | | {level} | {left[level]:.1%} | | | {left_apart[level]:.1%} |")


if __name__ == "__main__":
    main()
