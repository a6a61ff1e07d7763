#!/usr/bin/env python3
"""Makes shard-u16.tokens after docs/data.md, independently of the C++ writer. Needs the package `xxhash`."""
import pathlib
import struct

import xxhash

TOKENS = [0, 1, 2, 258, 49_999, 7, 32_768]
VOCAB_SIZE = 50_000

payload = b"".join(struct.pack("<H", token) for token in TOKENS)
header = struct.pack("<8sIIIIQQ16x", b"FSTOKENS", 1, 64, 2, VOCAB_SIZE, len(TOKENS),
                     xxhash.xxh3_64_intdigest(payload))
header += struct.pack("<Q", xxhash.xxh3_64_intdigest(header))
pathlib.Path(__file__).with_name("shard-u16.tokens").write_bytes(header + payload)
