#!/usr/bin/env python3
"""Makes sequence_order.json: positions of the first training sequences, by a second implementation of the order in
docs/data.md. A run resumed by a later version must see the same text, so these numbers may never change."""
import json
import pathlib

MASK32 = 0xFFFFFFFF
CASES = [  # tokens, sequence length, seed, first sequence, sequences
    (1_000, 16, 0, 0, 130),
    (4_404_412, 256, 42, 0, 24),
    (4_404_412, 256, 42, 17_200, 24),
    (4_404_412, 256, (1 << 63) + 12_345, 1_000_000, 24),
    (40, 16, 7, 0, 8),
    (33, 32, 7, 0, 4),
    (100_000_000_000, 2_048, 1, 48_828_120, 12),
    (10_000, 10, 3, 999 * (1 << 33), 12),
]


def philox4x32(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK32, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK32]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return c


def words(seed, epoch, number, value):
    counter = (value, epoch & MASK32, (epoch >> 32) << 8 | number, 0x44415441)
    return philox4x32(counter, (seed & MASK32, seed >> 32))


def permuted(index, size, seed, epoch):
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(8):
            left, right = right, left ^ (words(seed, epoch, number, right)[0] & mask)
        index = left << half | right
        if index < size:
            return index


def position(tokens, length, seed, sequence):
    windows = max(1, tokens // length - 1)
    epoch, index = divmod(sequence, windows)
    w = words(seed, epoch, 8, 0)
    offset = (w[1] << 32 | w[0]) % (tokens - windows * length)
    return offset + permuted(index, windows, seed, epoch) * length


def main():
    cases = [{
        "tokens": t, "sequence_length": s, "seed": seed, "first_sequence": first,
        "positions": [position(t, s, seed, first + i) for i in range(count)],
    } for t, s, seed, first, count in CASES]
    path = pathlib.Path(__file__).with_name("sequence_order.json")
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


main()
