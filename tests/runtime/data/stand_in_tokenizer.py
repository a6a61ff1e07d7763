#!/usr/bin/env python3
"""A tokenizer that needs no package, for tests of the protocol: a token is a UTF-16 code unit modulo 1000, but at least 1.

stand_in_tokenizer.py BEHAVIOUR
"""
import struct
import sys
import time

out = sys.stdout.buffer


def read(size):
    data = sys.stdin.buffer.read(size)
    if len(data) != size:
        sys.exit(0)
    return data


def number():
    return struct.unpack("<I", read(4))[0]


def refuse(kind, message):
    out.write(kind + struct.pack("<I", len(message)) + message)
    out.flush()


behaviour = sys.argv[1]
if behaviour == "refuses":
    refuse(b"u", b"has no package for this")
    sys.exit(0)
if behaviour == "dies":
    sys.exit("the last words\n")
if behaviour == "hangs":
    time.sleep(60)
if behaviour == "babbles":
    out.write(b"hello, world")
    out.flush()
if behaviour == "large":
    out.write(b"d" + struct.pack("<I", 1 << 31))
    out.flush()
out.write(b"+" + struct.pack("<III", 0 if behaviour == "strange" else 0x314B5446, 1000, 1000 if behaviour == "endless" else 0))
out.flush()
while True:
    request = read(1)
    if request == b"E":
        texts = [read(number()).decode() for _ in range(number())]
        if behaviour == "breaks":
            raise RuntimeError("broken inside")
        if behaviour == "complains":
            refuse(b"d", b"does not like this text")
            continue
        answer = b"+"
        if behaviour == "floods":
            out.write(answer + struct.pack("<I", 0xFFFFFFFF))
            out.flush()
            continue
        for text in texts:
            units = struct.unpack(f"<{len(text.encode('utf-16-le')) // 2}H", text.encode("utf-16-le"))
            ids = [5000 if behaviour == "lies" else max(1, unit % 1000) for unit in units]
            answer += struct.pack(f"<I{len(ids)}i", len(ids), *ids)
        out.write(answer)
    else:
        ids = struct.unpack(f"<{(count := number())}i", read(4 * count))
        text = "".join(map(chr, ids)).encode()
        out.write(b"+" + struct.pack("<I", 0xFFFFFFFF if behaviour == "floods" else len(text)) + text)
    out.flush()
