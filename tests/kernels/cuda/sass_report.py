#!/usr/bin/env python3
"""Registers, local memory and machine instructions per parameter of the CUDA update kernels.

  tests/kernels/cuda/sass_report.py BINARY [--cuobjdump PATH] [--name TEXT] [--limit TEXT=NUMBER ...]

BINARY is an object file, library or program with CUDA code in it. Instructions are those of the longest way through the
kernel's outermost loop, one turn of which is 8 parameters of a lane; blocks that only a division or root of unusual operands
enters (subnormal, infinite: they call a subroutine) are left out. Ends with an error when a kernel has local memory (spilled
registers among it) or exceeds a limit.
"""
import argparse
import re
import shutil
import subprocess
import sys

PARAMETERS_OF_TURN = 8
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);")


def run(cuobjdump, *arguments):
    return subprocess.run([cuobjdump, *arguments], check=True, capture_output=True, text=True).stdout


def demangled(names):
    out = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    return dict(zip(names, out.splitlines()))


def short(name):
    """update_kernel<8, FixedChoice<kAdam...>> as 'wide Adam V2 Split24', from the enumerators' values."""
    values = [int(v) for v in re.findall(r"\(flashshard::\w+\)(\d+)", name)]
    if "update_kernel<8" in name and len(values) == 3:
        family = ["Adam", "Lion", "Momentum", "Nesterov", "Plain"][values[0]]
        state = ["V2", "FP32", "V1"][values[1]]
        weight = ["Split24", "Split32", "BF16", "FP32", "Corrected24", "Corrected32", "FP16Corrected24",
                  "FP16Corrected32", "FP16"][values[2]]
        return f"{family} {state} {weight}"
    name = re.sub(r"\(anonymous namespace\)::|\(int\)|flashshard::cuda::", "", name)
    match = re.search(r"(\w+_kernel)(<.*?>)?\(", name)
    return match.group(1) + (match.group(2) or "") if match else name


def resources(cuobjdump, binary):
    """Mangled name -> (registers, bytes of stack and local memory)."""
    found = {}
    text = run(cuobjdump, "-res-usage", binary)
    for name, usage in re.findall(r"Function (\S+):\n\s*(.*)", text):
        numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
        found[name] = (numbers["REG"], numbers["STACK"] + numbers["LOCAL"])
    return found


def functions(cuobjdump, binary):
    """Mangled name -> [(address, text)] of the first architecture that has it."""
    found, current = {}, None
    for line in run(cuobjdump, "-sass", binary).splitlines():
        if "Function :" in line:
            name = line.split("Function :")[1].strip()
            current = found.setdefault(name, []) if name not in found else []
        match = INSTRUCTION.match(line)
        if match and current is not None:
            current.append((int(match.group(1), 16), match.group(2)))
    return found


class Loop:
    """The basic blocks of a function and the longest way through its outermost loop."""

    def __init__(self, instructions):
        self.instructions = instructions
        self.targets = [int(t, 16) for _, text in instructions for t in re.findall(r"\bBRA\S* .*?(0x[0-9a-f]+)", text)]
        self.index = {address: i for i, (address, _) in enumerate(instructions)}
        starts = {0} | {self.index[t] for t in self.targets if t in self.index}
        starts |= {i + 1 for i, (_, text) in enumerate(instructions) if re.search(r"\b(BRA|EXIT|RET)\b", text)}
        self.starts = sorted(s for s in starts if s < len(instructions))
        self.end = dict(zip(self.starts, self.starts[1:] + [len(instructions)]))

    def successors(self, start):
        """Blocks after one; None when it calls a subroutine."""
        body = self.instructions[start:self.end[start]]
        if any("CALL" in text for _, text in body):
            return None
        last = body[-1][1]
        conditional = last.startswith("@") or re.search(r"BRA\S* \S*P\d", last)
        after = []
        if re.search(r"\bBRA\b", last):
            after.append(self.index[int(re.search(r"(0x[0-9a-f]+)", last).group(1), 16)])
        if (not re.search(r"\b(BRA|EXIT|RET)\b", last) or conditional) and self.end[start] < len(self.instructions):
            after.append(self.end[start])
        return after

    def longest_turn(self):
        """Instructions of the longest cycle without calls through the loop's head, the lowest target of a backward branch."""
        backward = [self.index[int(re.search(r"(0x[0-9a-f]+)", text).group(1), 16)]
                    for i, (_, text) in enumerate(self.instructions)
                    if re.search(r"\bBRA\b", text) and self.index[int(re.search(r"(0x[0-9a-f]+)", text).group(1), 16)] < i]
        if not backward:
            return 0
        head = min(backward)
        known, on_way = {}, set()

        def longest(block):
            """From the block to the head again; None where no way leads there."""
            if block in known:
                return known[block]
            after = self.successors(block)
            if after is None:
                return None
            on_way.add(block)
            ways = [0 if next_block == head else longest(next_block) for next_block in after
                    if next_block == head or next_block not in on_way]
            on_way.discard(block)
            ways = [way for way in ways if way is not None]
            known[block] = max(ways) + self.end[block] - block if ways else None
            return known[block]

        sys.setrecursionlimit(10000)
        return longest(head) or 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--cuobjdump", default=shutil.which("cuobjdump"), help="the CUDA toolkit's (default: the one on PATH)")
    parser.add_argument("--name", default="", help="only kernels with this in their name")
    parser.add_argument("--limit", action="append", default=[], help="NAME=NUMBER: at most so many instructions per parameter")
    options = parser.parse_args()
    if not options.cuobjdump:
        sys.exit("error: no cuobjdump on PATH; it is part of the CUDA toolkit (or: pip install nvidia-cuda-cuobjdump)")
    limits = {name: float(value) for name, value in (limit.rsplit("=", 1) for limit in options.limit)}
    usage = resources(options.cuobjdump, options.binary)
    code = functions(options.cuobjdump, options.binary)
    names = demangled(list(usage))
    failures, seen = [], set()
    print(f"{'kernel':32} {'registers':>9} {'local bytes':>11} {'instructions per parameter':>26}")
    for name in sorted(usage, key=lambda n: short(names[n])):
        kernel = short(names[name])
        if options.name not in kernel:
            continue
        registers, local = usage[name]
        turn = Loop(code[name]).longest_turn() / PARAMETERS_OF_TURN if "update_kernel<8" in names[name] else 0
        print(f"{kernel:32} {registers:9} {local:11} {f'{turn:.1f}' if turn else '-':>26}")
        if local:
            failures.append(f"{kernel} has {local} bytes of local memory")
        if kernel in limits:
            seen.add(kernel)
            if not 0 < turn <= limits[kernel]:
                failures.append(f"{kernel}: {turn:.1f} instructions per parameter, the limit is {limits[kernel]}")
    failures += [f"no kernel is named {name}" for name in limits.keys() - seen]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
