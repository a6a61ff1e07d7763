#!/usr/bin/env python3
"""A Hugging Face tokenizer.json behind the tokenizer protocol of docs/data.md, on stdin and stdout.

Started by flashshard:  hugging_face_tokenizer.py FOLDER
FOLDER holds tokenizer.json and, to name the end-of-document token, tokenizer_config.json with `eos_token`.
Needs the package `tokenizers` from PyPI, 0.15.1 or newer.
"""
import json
import os
import struct
import sys

GREETING = 0x314B5446  # "FTK1"
LONGEST_MESSAGE = 4096  # bytes of an error's text
# What the common families call it, where tokenizer_config.json does not say.
USUAL_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


class Refused(Exception):
    """kind: b"d" the data is bad, b"u" the tokenizer cannot be used here."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def read(size):
    data = sys.stdin.buffer.read(size)
    if len(data) != size:
        sys.exit(0)  # the other side is gone
    return data


def read_number():
    return struct.unpack("<I", read(4))[0]


def number(value):
    return struct.pack("<I", value)


def end_of_document(tokenizer, folder):
    name = None
    settings = os.path.join(folder, "tokenizer_config.json")
    if os.path.exists(settings):
        try:
            with open(settings, encoding="utf-8") as file:
                name = json.load(file).get("eos_token")
        except (ValueError, AttributeError, OSError) as error:
            raise Refused(b"d", f"tokenizer_config.json cannot be read: {error}")
        if isinstance(name, dict):
            name = name.get("content")
        if name is not None and not isinstance(name, str):
            raise Refused(b"d", "the eos_token of tokenizer_config.json is not text")
    for candidate in (name,) if name else USUAL_ENDS:
        token = tokenizer.token_to_id(candidate)
        if token is not None:
            return token
    if name:
        raise Refused(b"d", f"its vocabulary lacks the eos_token of tokenizer_config.json, {name}")
    raise Refused(b"d", "names no end-of-document token: put a tokenizer_config.json with eos_token beside it")


def load(folder):
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise Refused(b"u", "python3 has no package `tokenizers`: pip install 'tokenizers>=0.15.1', or activate the environment that has it")
    try:
        tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    except Exception as error:  # the package raises its base class
        raise Refused(b"d", f"is not a tokenizer.json: {error}")
    if not tokenizer.get_vocab(with_added_tokens=True):
        raise Refused(b"d", "has an empty vocabulary")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if not hasattr(tokenizer, "encode_special_tokens"):
        raise Refused(b"u", "python3's package `tokenizers` is too old: pip install 'tokenizers>=0.15.1'")
    # Text is text: a document that quotes "<|endoftext|>" does not end there.
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer, end):
    texts = [read(read_number()) for _ in range(read_number())]
    try:
        encodings = tokenizer.encode_batch([text.decode("utf-8") for text in texts], add_special_tokens=False)
    except UnicodeDecodeError as error:
        raise Refused(b"d", f"text is not UTF-8: {error}")
    except Exception as error:  # the package raises its base class
        raise Refused(b"d", f"text cannot be tokenized: {error}")
    parts = [b"+"]
    for encoding in encodings:
        ids = encoding.ids
        # Unigram and WordLevel models hold it as a piece or a word like any other.
        if end in ids:
            raise Refused(b"d", f"text holds {tokenizer.id_to_token(end)}, which this tokenizer's model takes for the end of a document: "
                                "take it out")
        parts += [number(len(ids)), struct.pack(f"<{len(ids)}i", *ids)]
    return b"".join(parts)


def decode(tokenizer, vocabulary):
    count = read_number()
    ids = struct.unpack(f"<{count}i", read(4 * count))
    if any(not 0 <= token < vocabulary for token in ids):
        raise Refused(b"d", "a token id is outside the vocabulary")
    text = tokenizer.decode(list(ids), skip_special_tokens=False).encode("utf-8")
    return b"+" + number(len(text)) + text


def answer(make):
    try:
        reply = make()
    except Refused as error:
        message = " ".join(str(error).split()).encode("utf-8", "replace")[:LONGEST_MESSAGE]
        reply = error.kind + number(len(message)) + message
    sys.stdout.buffer.write(reply)
    sys.stdout.buffer.flush()
    return reply.startswith(b"+")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: hugging_face_tokenizer.py FOLDER (started by flashshard)")
    state = {}

    def greet():
        tokenizer = state["tokenizer"] = load(sys.argv[1])
        # Ids may have gaps, so the count of tokens is not enough.
        state["vocabulary"] = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        state["end"] = end_of_document(tokenizer, sys.argv[1])
        return b"+" + struct.pack("<III", GREETING, state["vocabulary"], state["end"])

    if not answer(greet):
        return
    while True:
        request = read(1)
        if request == b"E":
            answer(lambda: encode(state["tokenizer"], state["end"]))
        elif request == b"D":
            answer(lambda: decode(state["tokenizer"], state["vocabulary"]))
        else:
            sys.exit("a request outside the protocol")


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        pass
