#!/usr/bin/env python3
"""Real runs of the binary under mpirun, as a user and a cluster see them: exit codes, files, interruptions, bad input.

Run by ctest, one case each:  FLASHSHARD_BINARY=build/flashshard python3 tests/launch/end_to_end_test.py Runs.test_...
"""
import contextlib
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("FLASHSHARD_BINARY", str(ROOT / "build" / "flashshard"))
CONFIG = str(ROOT / "launch" / "configs" / "tiny.textproto")
LIMIT = 120  # seconds: a command that takes longer hangs, and that is a failure
WORDS = ["and ", "the ", "lord ", "said ", "unto ", "him, ", "go ", "out.\n"]


def environment():
    return dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                OMPI_MCA_rmaps_base_oversubscribe="1")


class EndToEnd(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="flashshard-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        source = random.Random(1)
        (self.folder / "text.txt").write_text("".join(source.choice(WORDS) for _ in range(9000)))
        self.call(["prepare", "--input", self.folder / "text.txt", "--output", self.folder / "data"])

    def call(self, arguments, code=0, ranks=None, **keywords):
        """Runs a command to its end and returns it; fails on any other exit code than `code`."""
        result = subprocess.run(self.command(arguments, ranks), env=environment(), timeout=LIMIT, text=True,
                                errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords)
        self.assertEqual(result.returncode, code, f"{arguments}\n{result.stdout}\n{result.stderr}")
        return result

    def start(self, arguments, ranks):
        process = subprocess.Popen(self.command(arguments, ranks), env=environment(), text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        self.addCleanup(process.kill)
        return process

    @staticmethod
    def command(arguments, ranks):
        return (["mpirun", "-n", str(ranks)] if ranks else []) + [BINARY] + [str(a) for a in arguments]

    def train(self, run="run", *settings):
        base = {"run.dir": self.folder / run, "data.path": self.folder / "data", "run.threads": 1}
        base.update(s.split("=", 1) for s in settings)
        arguments = ["train", "--config", CONFIG]
        for path, value in base.items():
            arguments += ["--set", f"{path}={value}"]
        return arguments

    def metrics(self, run="run"):
        path = self.folder / run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []

    def wait_for_step(self, process, step, run="run"):
        deadline = time.monotonic() + LIMIT
        while len(self.metrics(run)) < step:
            self.assertIsNone(process.poll(), "the run ended early")
            self.assertLess(time.monotonic(), deadline, f"step {step} never came")
            time.sleep(0.01)

    def finish(self, process):
        stdout, stderr = process.communicate(timeout=LIMIT)
        return process.returncode, stdout, stderr

    def status(self, rank, run="run"):
        return json.loads((self.folder / run / "status" / f"rank-{rank:05}.json").read_text())

    def hash(self, run="run"):
        return self.call(["hash", self.folder / run]).stdout.strip()

    def errors(self, result):
        """Our own lines on stderr, without mpirun's."""
        return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


# Long enough to be interrupted on any machine, short enough to wait for.
LONG = ("train.steps=400", "checkpoint.every=40", "train.validate_every=0", "run.deadline_seconds=60")


class Runs(EndToEnd):
    def test_train_evaluate_generate_and_look_at_the_checkpoint(self):
        losses = []
        for ranks in (None, 1, 2, 4):
            run = f"run{ranks}"
            out = self.call(self.train(run), ranks=ranks).stdout
            self.assertIn("step: 20  loss:", out)
            self.assertIn("validate step: 20", out)
            losses.append(self.metrics(run)[-1]["validation_loss"])
            self.assertEqual(len(self.metrics(run)), 20)
            for rank in range(ranks or 1):
                self.assertEqual((self.status(rank, run)["state"], self.status(rank, run)["exit_code"]), ("done", 0))
                self.assertTrue((self.folder / run / "logs" / f"rank-{rank:05}.log").exists())
        for loss in losses:
            self.assertAlmostEqual(loss, losses[0], delta=0.01 * losses[0])
        self.assertEqual(self.hash("runNone"), self.hash("run1"))  # mpirun -n 1 is no different from alone

        run = self.folder / "run2"
        self.assertIn("is whole", self.call(["verify", run]).stdout)
        self.assertEqual(json.loads(self.call(["hash", run, "--json"]).stdout)["total"], self.hash("run2"))
        inspection = json.loads(self.call(["inspect", run, "--json"]).stdout)
        self.assertEqual(inspection["world_size"], 2)
        evaluation = json.loads(self.call(["eval", "--checkpoint", run, "--data", self.folder / "data", "--json"], ranks=2).stdout)
        self.assertAlmostEqual(evaluation["loss"], losses[2], places=5)
        self.assertAlmostEqual(evaluation["bits_per_byte"], losses[2] / math.log(2), places=5)  # a token is a byte
        self.assertEqual(evaluation["bits_per_token"], evaluation["bits_per_byte"])
        generated = self.call(["generate", "--checkpoint", run, "--prompt", "and ", "--tokens", "40", "--seed", "3"])
        self.assertIn("tokens per second", generated.stderr)
        text = generated.stdout
        self.assertEqual(text, self.call(["generate", "--checkpoint", run, "--prompt", "and ", "--tokens", "40", "--seed", "3"]).stdout)

    def test_a_checkpoint_is_fine_tuned_on_pairs_and_then_ends_its_answers(self):
        self.call(self.train("base"), ranks=2)
        pair = json.dumps({"prompt": "go ", "response": "out."}) + "\n"
        (self.folder / "pairs.jsonl").write_text(pair * 400)
        out = self.call(["prepare", "--input", self.folder / "pairs.jsonl", "--output", self.folder / "pairs",
                         "--jsonl-fields", "prompt,response"]).stdout
        self.assertIn("in the loss          2,000 tokens", out)
        self.call(self.train("tuned", f"model.initialize_from={self.folder}/base", f"data.path={self.folder}/pairs",
                             "train.steps=60"), ranks=2)
        text = self.call(["generate", "--checkpoint", self.folder / "tuned", "--prompt", "go ", "--temperature", "0"]).stdout
        self.assertEqual(text, "go out.\n")
        evaluation = json.loads(self.call(["eval", "--checkpoint", self.folder / "tuned", "--data", self.folder / "pairs",
                                           "--json"], ranks=2).stdout)
        self.assertEqual(evaluation["tokens"], 100)  # 20 of 400 pairs are held out, 5 tokens of each count
        self.assertAlmostEqual(evaluation["bits_per_byte"], evaluation["bits_per_token"] * 5 / 4)

    def test_a_checkpoint_resumes_on_other_ranks_and_leaves_and_comes_back(self):
        settings = ("train.micro_batch=1",)
        self.call(self.train("run", *settings), ranks=4)
        for ranks in (1, 2, 3, 8):
            out = self.folder / f"for-{ranks}"
            self.call(["reshard", self.folder / "run", "--ranks", ranks, "--output", out / "checkpoints"])
            self.assertIn("is whole", self.call(["verify", out]).stdout)
            self.assertEqual(self.hash(f"for-{ranks}"), self.hash())
        older = self.folder / "run" / "checkpoints" / "step-00000010"
        self.call(self.train("other", *settings) + ["--resume", older], ranks=3)
        self.assertAlmostEqual(self.metrics("other")[-1]["validation_loss"], self.metrics()[-1]["validation_loss"], delta=0.05)

        def hashes(run):
            return json.loads(self.call(["hash", self.folder / run, "--json"]).stdout)
        for dtype, classes in (("bf16", ["weights"]), ("fp32", ["weights", "correction"])):
            self.call(["export", self.folder / "run", "--format", "hf", "--dtype", dtype, "--output", self.folder / dtype])
            self.call(["import", "--from-hf", self.folder / dtype, "--output", self.folder / f"from-{dtype}"])
            for name in classes:
                self.assertEqual(hashes(f"from-{dtype}")[name], hashes("run")[name])
        generate = ["--prompt", "and ", "--tokens", "30", "--temperature", "0"]
        self.assertEqual(self.call(["generate", "--checkpoint", self.folder / "from-bf16", *generate]).stdout,
                         self.call(["generate", "--checkpoint", self.folder / "run", *generate]).stdout)
        self.call(self.train("tuned", f"model.initialize_from={self.folder}/from-fp32", "train.steps=10"), ranks=2)
        self.assertLess(self.metrics("tuned")[0]["loss"], 0.8 * self.metrics()[0]["loss"])
        self.call(["export", self.folder / "run", "--format", "gguf", "--output", self.folder / "gguf"])
        self.assertEqual((self.folder / "gguf" / "model.gguf").read_bytes()[:4], b"GGUF")

    def test_a_request_to_stop_saves_and_the_resumed_run_ends_with_the_same_hash(self):
        self.call(self.train("whole", *LONG), ranks=2)
        for number, wanted in ((signal.SIGUSR1, "SIGUSR1"), (signal.SIGUSR2, "SIGUSR2")):
            run = f"run{wanted}"
            process = self.start(self.train(run, *LONG), 2)
            self.wait_for_step(process, 50, run)
            process.send_signal(number)  # mpirun forwards it
            code, stdout, stderr = self.finish(process)
            self.assertEqual(code, 8, stdout + stderr)
            self.assertEqual(self.status(1, run)["state"], "stopped")
            self.assertIn(wanted, self.status(0, run)["reason"])
            resumed = self.call(self.train(run, *LONG), ranks=2)
            self.assertEqual(self.hash(run), self.hash("whole"))
            self.assertIn(f"-00000400, hash {self.hash(run)}\n", resumed.stdout, "the state in memory, without reading a file")

    def processes(self):
        """The pids of this test's ranks, and of the mpirun above them."""
        ranks, launchers = [], []
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if any(str(self.folder).encode() in part for part in command):
                (ranks if command[0] == BINARY.encode() else launchers).append(int(path.parent.name))
        return ranks, launchers

    def wait_for_moment(self, moment, process, source):
        """Waits for some instant of a run's start, of a step, or of a save: while files are written, at the commit, after it. Returns
        processes(), looked up before it: a save is soon over."""
        def checkpoints():
            return set((self.folder / "run" / "checkpoints").glob(pattern))
        pattern = {"save": "*.tmp-*", "commit": "*.tmp-*/manifest.pb", "after": "step-????????"}.get(moment, "")
        before = checkpoints() if pattern else set()  # what an earlier kill left is no moment of this run
        deadline = time.monotonic() + LIMIT
        if moment == "start":
            time.sleep(source.random() * 0.8)
            return self.processes()
        while len((processes := self.processes())[0]) < 2:
            self.assertIsNone(process.poll(), f"the run ended before: {moment}")
            self.assertLess(time.monotonic(), deadline, "the ranks never came")
        if moment == "step":
            self.wait_for_step(process, len(self.metrics()) + source.randrange(1, 60))
        else:
            while checkpoints() <= before:
                self.assertIsNone(process.poll(), f"the run ended before: {moment}")
                self.assertLess(time.monotonic(), deadline, f"it never came: {moment}")
        time.sleep(source.random() * 0.003)
        return processes

    def saved_steps(self):
        """The steps that have a checkpoint's name, after 0."""
        return [0, *(int(p.name[5:]) for p in (self.folder / "run").glob("checkpoints/step-????????"))]

    def expect_resumed(self, stdout, there, moment):
        """A start that came to its first step began at this checkpoint, or at one after it."""
        resumed = re.findall(r"^resumed from .*/step-(\d+): ", stdout, re.MULTILINE)
        if resumed:
            self.assertGreaterEqual(int(resumed[0]), there, moment)
        elif re.search(r"^step:", stdout, re.MULTILINE):
            self.assertEqual(there, 0, f"it began anew: {moment}")

    def test_killed_at_random_moments_it_goes_on_to_the_same_hash(self):
        settings = (*LONG, "checkpoint.every=20", "checkpoint.keep_last=2")
        there = 0  # the newest step whose folder had its name at a kill
        self.call(self.train("whole", *settings), ranks=2)
        source = random.Random(int(os.environ.get("FLASHSHARD_TEST_SEED", "7")))
        moments = ["start", "step", "save", "commit", "after"]
        for attempt in range(int(os.environ.get("FLASHSHARD_KILLS", "5"))):
            process = self.start(self.train("run", *settings), 2)
            moment = moments[attempt % len(moments)]
            ranks, launchers = self.wait_for_moment(moment, process, source)
            there_before = self.saved_steps()
            # One rank alone, which ends the others through mpirun, or everything at once, as when the machine goes down.
            for pid in [source.choice(ranks)] if ranks and source.random() < 0.5 else ranks + launchers:
                with contextlib.suppress(ProcessLookupError):  # mpirun has ended it already
                    os.kill(pid, signal.SIGKILL)
            code, stdout, _ = self.finish(process)
            self.assertNotEqual(code, 0, moment)
            self.expect_resumed(stdout, there, moment)
            there = max(there, *there_before)
            deadline = time.monotonic() + LIMIT
            while self.processes() != ([], []):
                self.assertLess(time.monotonic(), deadline, "a rank hangs")
                time.sleep(0.01)
            left = sorted(p.name for p in (self.folder / "run").glob("checkpoints/*"))
            print(f"killed at: {moment}, step {len(self.metrics())}; checkpoints: {' '.join(left)}", file=sys.stderr)
            self.assertGreaterEqual(max(self.saved_steps()), there, "a checkpoint is gone")
            if there > 0:
                self.assertIn("is whole", self.call(["verify", self.folder / "run"]).stdout)
        self.assertGreater(there, 0, "no kill came after a save: nothing was shown")
        self.expect_resumed(self.call(self.train("run", *settings), ranks=2).stdout, there, "the last start")
        self.assertEqual(self.hash(), self.hash("whole"))
        self.assertEqual([line["step"] for line in self.metrics()], list(range(1, 401)))
        self.assertEqual(sorted(p.name for p in (self.folder / "run" / "checkpoints").iterdir()),
                         ["latest", "step-00000380", "step-00000400"])

    def test_a_reproducible_run_killed_on_three_ranks_goes_on_on_two_to_the_hash_of_one(self):
        same = ["train.steps=200", "parallelism.reproducible=true", "parallelism.reduce=EACH", "run.threads=1",
                "checkpoint.every=10", "train.validate_every=0"]
        self.call(self.train("whole", *same), ranks=1)
        process = self.start(self.train("run", *same, "parallelism.stage=3"), 3)
        self.wait_for_step(process, 12)
        os.kill(self.status(2)["pid"], signal.SIGKILL)
        code, _, _ = self.finish(process)
        self.assertNotEqual(code, 0)
        self.assertIn("resumed from", self.call(self.train("run", *same, "parallelism.stage=2"), ranks=2).stdout)
        self.assertEqual(self.hash(), self.hash("whole"))

    def test_stages_release_and_groups_end_with_the_same_hash(self):
        same = ["train.global_batch=8", "optimizer.clip_mode=PREVIOUS"]
        self.call(self.train("1", *same), ranks=4)
        release = ["parallelism.release=true", "optimizer.skip_scope=BUCKET"]
        for name, stage, settings in (("whole", 0, []), ("3", 3, []), ("release", 2, release),
                                      ("groups", 3, ["parallelism.shard_group=2"])):
            self.call(self.train(name, *same, f"parallelism.stage={stage}", *settings), ranks=4)
            self.assertEqual(self.hash(name), self.hash("1"), name)

    def test_a_full_disk_ends_with_code_5_and_the_last_checkpoint_whole(self):
        disk = self.folder / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], stderr=subprocess.DEVNULL)
        if mounted.returncode != 0:
            self.skipTest("this machine does not let us mount a small disk")
        self.addCleanup(subprocess.run, ["umount", "-l", str(disk)])
        self.call(self.train("whole", *LONG), ranks=2)
        process = self.start(self.train("disk/run", *LONG), 2)
        self.wait_for_step(process, 50, "disk/run")
        with open(disk / "ballast", "wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(b"x" * 4096)
            except OSError:
                pass
        code, stdout, stderr = self.finish(process)
        self.assertEqual(code, 5, stdout + stderr)
        self.assertIn("error: ", stderr)
        self.assertIn("is whole", self.call(["verify", disk / "run"]).stdout)
        (disk / "ballast").unlink()
        self.call(self.train("disk/run", *LONG), ranks=2)
        self.assertEqual(self.hash("disk/run"), self.hash("whole"))

    def test_a_stopped_rank_is_named_at_the_deadline_and_nothing_hangs(self):
        process = self.start(self.train("run", *LONG, "run.deadline_seconds=3", "train.steps=100000"), 3)
        self.wait_for_step(process, 20)
        os.kill(self.status(1)["pid"], signal.SIGSTOP)
        begin = time.monotonic()
        code, stdout, stderr = self.finish(process)
        # mpirun 4.1 wakes a stopped rank before it kills it and at times crashes over what that rank does next (139): the
        # status files are what a launcher should read.
        self.assertIn(code, (6, 139), stdout + stderr)
        self.assertLess(time.monotonic() - begin, 30)
        self.assertIn("rank 1", stderr)
        statuses = [self.status(rank) for rank in (0, 2)]
        self.assertIn(6, [s["exit_code"] for s in statuses])
        self.assertTrue(any("rank 1" in s["reason"] for s in statuses))

    def test_a_second_trainer_on_a_folder_is_refused_and_the_first_goes_on(self):
        process = self.start(self.train("run", *LONG, "train.steps=100000"), 2)
        self.wait_for_step(process, 5)
        result = self.call(self.train("run", *LONG), code=2, ranks=2)
        self.assertEqual(len(self.errors(result)), 1, result.stderr)
        self.assertIn(str(self.status(0)["pid"]), result.stderr)
        steps = len(self.metrics())
        self.wait_for_step(process, steps + 5)
        process.send_signal(signal.SIGUSR1)
        self.assertEqual(self.finish(process)[0], 8)


class BadInput(EndToEnd):
    def refused(self, code, *names, ranks=2, settings=(), arguments=None):
        result = self.call(arguments or self.train("run", *settings), code=code, ranks=ranks)
        lines = self.errors(result)
        self.assertEqual(len(lines), 1, result.stderr)
        for name in names:
            self.assertIn(name, lines[0])
        return result

    def test_settings_are_refused_with_their_path_and_the_nearest_right_name(self):
        self.refused(2, "optimizer.learning_rte", "optimizer.learning_rate", settings=["optimizer.learning_rte=1"])
        self.refused(2, "optimizer.beta1", settings=["optimizer.beta1=1.5"])
        self.refused(2, "optimizer.state", settings=["optimizer.state=INT4"])
        self.refused(2, "train.global_batch", "train.micro_batch", settings=["train.global_batch=9", "train.micro_batch=2"])
        self.refused(2, "parallelism.stage", settings=["parallelism.stage=3"])
        self.refused(2, "parallelism.release", settings=["parallelism.release=true"])
        self.refused(2, "nowhere.textproto", arguments=["train", "--config", self.folder / "nowhere.textproto"])
        (self.folder / "bad.textproto").write_text("run { dir: \"x\" \n colour: 3 }")
        self.refused(2, "run.colour", "bad.textproto", arguments=["train", "--config", self.folder / "bad.textproto"])

    def test_bad_usage_has_code_2_and_help_has_0(self):
        for arguments in ([], ["paint"], ["train"], ["train", "--config"], ["hash"], ["generate", "--checkpoint", "x"],
                          ["prepare", "--input", "x"], ["train", "--config", CONFIG, "--colour", "red"]):
            result = self.call(arguments, code=2)
            self.assertEqual(len(self.errors(result)), 1, result.stderr)
        for command in ("prepare", "train", "eval", "generate", "inspect", "verify", "hash"):
            self.assertIn("Example", self.call([command, "--help"]).stdout)
        self.assertIn("train", self.call(["--help"]).stdout)

    def test_output_that_cannot_be_written_or_names_with_line_ends_are_one_clear_line(self):
        self.call(self.train())
        with open("/dev/full", "w") as full:
            result = subprocess.run(self.command(["hash", self.folder / "run"], None), stdout=full, stderr=subprocess.PIPE,
                                    env=environment(), timeout=LIMIT, text=True)
        self.assertEqual(result.returncode, 5)
        self.assertIn("cannot write the output", result.stderr)
        result = self.call(["prepare", "--input", self.folder / "no\nfile", "--output", self.folder / "d"], code=3)
        self.assertEqual(len(result.stderr.splitlines()), 1)
        # With stdout closed nothing else may be given its number.
        closed = subprocess.run(["sh", "-c", 'exec "$0" "$@" >&-', BINARY, "hash", str(self.folder / "run")],
                                stderr=subprocess.PIPE, env=environment(), timeout=LIMIT, text=True)
        self.assertEqual((closed.returncode, closed.stderr), (0, ""))

    def test_pairs_without_a_counted_token_are_not_evaluated(self):
        self.call(self.train())
        pair = json.dumps({"prompt": "x" * 20000, "response": "y"}) + "\n"
        (self.folder / "long.jsonl").write_text(pair * 4)
        self.call(["prepare", "--input", self.folder / "long.jsonl", "--output", self.folder / "long", "--jsonl-fields",
                   "prompt,response", "--validation-fraction", "0.3"])
        for ranks in (None, 2):
            result = self.call(["eval", "--checkpoint", self.folder / "run", "--data", self.folder / "long", "--sequences", "1"],
                               code=3, ranks=ranks)
            self.assertIn("no token of these sequences counts in the loss", result.stderr)

    def test_data_that_is_missing_truncated_or_damaged_has_code_3(self):
        data = self.folder / "data"
        self.refused(3, "nowhere", settings=[f"data.path={self.folder}/nowhere"])
        self.refused(3, "sequence", settings=["train.sequence_length=500000"])
        shard = data / "train-00000.tokens"
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-100])
        self.refused(3, "train-00000.tokens")
        shard.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        self.refused(3, "train-00000.tokens")
        shard.unlink()
        self.refused(3, "train-00000.tokens")
        self.refused(3, "nothing.txt", ranks=None, arguments=["prepare", "--input", "nothing.txt", "--output", self.folder / "d"])
        (self.folder / "empty.txt").touch()
        self.refused(3, "empty.txt", ranks=None,
                     arguments=["prepare", "--input", self.folder / "empty.txt", "--output", self.folder / "d"])

    def test_documents_tokenizers_and_shards_are_refused_with_their_place(self):
        def prepare(text, *arguments):
            (self.folder / "bad.jsonl").write_text(text)
            return ["prepare", "--input", self.folder / "bad.jsonl", "--output", self.folder / "d",
                    "--validation-fraction", "0", *arguments]
        fields = ("--jsonl-fields", "prompt,response")
        self.refused(3, "bad.jsonl, line 2", ranks=None, arguments=prepare('{"prompt": "a", "response": "b"}\n{"pro', *fields))
        self.refused(3, "bad.jsonl, line 1", "response", ranks=None, arguments=prepare('{"prompt": "a"}', *fields))
        self.refused(2, "spm", "sentencepiece:MODEL", ranks=None, arguments=prepare("text", "--tokenizer", "spm"))
        self.refused(3, "bad.jsonl", ranks=None, arguments=prepare("text", "--tokenizer", f"sentencepiece:{self.folder}/bad.jsonl"))
        self.refused(3, "tokenizer.json", ranks=None, arguments=prepare("text", "--tokenizer", f"hf:{self.folder}"))
        (self.folder / "a.bin").write_bytes(bytes(2000))
        self.refused(3, "a.bin", "magic", settings=[f"data.path={self.folder}/a.bin"])
        self.refused(2, "model.vocab_size", settings=["model.vocab_size=255"])
        self.refused(2, "nowhere", settings=["model.initialize_from=nowhere"])

    def test_checkpoints_that_are_missing_or_damaged_have_their_codes(self):
        self.call(self.train(), ranks=2)
        for command in (["verify"], ["hash"], ["inspect"]):
            self.refused(2, "nowhere", ranks=None, arguments=[*command, self.folder / "nowhere"])
            self.refused(4, "data", ranks=None, arguments=[*command, self.folder / "data"])
        state = self.folder / "run" / "checkpoints" / "step-00000020" / "state-00001.safetensors"
        damaged = bytearray(state.read_bytes())
        damaged[-1] ^= 16
        state.write_bytes(damaged)
        result = self.call(["verify", self.folder / "run"], code=4)
        self.assertIn("state-00001.safetensors", result.stdout)
        self.refused(4, "state-00001.safetensors", settings=["train.steps=30"])
        self.refused(4, "cannot resume from", ranks=3, settings=["train.steps=30"])
        damaged[-1] ^= 16
        state.write_bytes(damaged)
        self.refused(4, "model.layers was 2", "is 3 now", settings=["model.layers=3"])
        self.refused_without_a_change("step-00000020/weights-00001.safetensors", state.with_name("weights-00001.safetensors"), None)
        # The newest manifest: no start and no tool goes back behind it.
        manifest = state.with_name("manifest.pb")
        whole = manifest.read_bytes()
        for bytes_there in (whole[:-1], whole[:100] + bytes([whole[100] ^ 4]) + whole[101:], b"FSHMANI2" + whole[8:], None):
            self.refused_without_a_change("step-00000020/manifest.pb", manifest, bytes_there)

    def refused_without_a_change(self, named, file, bytes_there):
        """With these bytes in a file of the newest checkpoint, or without the file: all that read it are refused, all files stay."""
        before = file.read_bytes()
        file.unlink()
        if bytes_there is not None:
            file.write_bytes(bytes_there)

        def files():
            return {p: p.read_bytes() for p in (self.folder / "run" / "checkpoints").rglob("*") if p.is_file()}
        there = files()
        result = self.call(["verify", self.folder / "run"], code=4)
        self.assertIn(named.rsplit("/")[-1], result.stdout + result.stderr)
        self.refused(4, named, settings=["train.steps=30"])
        self.refused(4, named, ranks=None, arguments=["export", self.folder / "run", "--format", "hf", "--output", self.folder / "out"])
        self.assertEqual(files(), there)
        file.write_bytes(before)

    def test_exports_imports_and_reshards_are_refused_with_their_codes(self):
        self.call(self.train(), ranks=2)
        run, out = self.folder / "run", self.folder / "out"

        def refused(code, *words, arguments):
            self.refused(code, *words, ranks=None, arguments=arguments)
            self.assertFalse(out.exists())
            self.assertEqual([p.name for p in self.folder.iterdir() if ".tmp-" in p.name], [])
        refused(2, "nowhere", arguments=["export", self.folder / "nowhere", "--format", "hf", "--output", out])
        refused(2, "onnx", arguments=["export", run, "--format", "onnx", "--output", out])
        refused(2, "exists already", arguments=["export", run, "--format", "hf", "--output", run])
        refused(2, "exists already", arguments=["export", run, "--format", "gguf", "--output", run])
        refused(2, "--ranks", arguments=["reshard", run, "--ranks", "0", "--output", out])
        refused(2, "step-00000020", arguments=["reshard", run, "--ranks", "3", "--output", run / "checkpoints"])
        refused(2, "config.json", arguments=["import", "--from-hf", run, "--output", out])
        (self.folder / "config.json").write_text('{"model_type": "gpt2"}')
        refused(4, "model_type", "config.json", arguments=["import", "--from-hf", self.folder, "--output", out])
        self.call(["export", run, "--format", "hf", "--output", self.folder / "hf"])
        weights = self.folder / "hf" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        refused(4, "model.safetensors", arguments=["import", "--from-hf", self.folder / "hf", "--output", out])
        # A full disk, as a limit on the size of a file.
        for arguments in (["export", run, "--format", "hf"], ["export", run, "--format", "gguf"], ["reshard", run, "--ranks", "1"]):
            command = ["bash", "-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "bash", *self.command([*arguments, "--output", out], None)]
            result = subprocess.run(command, text=True, timeout=LIMIT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.assertEqual(result.returncode, 5, result.stderr)
            self.assertEqual([p for p in out.rglob("*") if p.is_file()] if out.exists() else [], [])
            shutil.rmtree(out, ignore_errors=True)

    def test_a_folder_that_cannot_be_used_has_code_2(self):
        (self.folder / "file").write_text("x")
        self.refused(2, "file", settings=[f"run.dir={self.folder}/file"])
        self.refused(2, "missing", settings=[f"run.dir={self.folder}/missing/parent/run"])


class Benchmarks(EndToEnd):
    SMALL = ("bench", "optimizer", "--elements", "65536", "--repeat", "2")

    def test_optimizer_measures_every_loop_beside_a_copy_and_the_plain_loops(self):
        path = self.folder / "bench.json"
        out = self.call([*self.SMALL, "--json", path]).stdout
        report = json.loads(path.read_text())
        self.assertEqual((report["elements"], report["threads"], report["rounds"]), (65536, 1, 2))
        for field in ("compiler", "machine", "version", "clock", "rounding"):
            self.assertTrue(report[field])
        sets = report["machine"]["instruction_sets"]
        self.assertEqual(sets[0], "scalar")
        ours = [row for row in report["rows"] if row["implementation"] == "flashshard"]
        kinds = {(r["rule"], r["format"], r["master_weight_bits"], r["instruction_set"]) for r in ours}
        self.assertEqual(len(kinds), len(ours))
        self.assertEqual(len(ours), 5 * 3 * 3 * len(sets))
        for row in report["rows"]:
            self.assertAlmostEqual(row["params_per_second"], 65536 / row["seconds"], delta=1e-6 * row["params_per_second"])
            self.assertAlmostEqual(row["time_over_copy"], row["seconds"] / row["copy_seconds"], places=6)
            self.assertLessEqual(row["seconds_shortest"], row["seconds"])
            self.assertLessEqual(row["seconds"], row["seconds_longest"])
        adamw = {(r["format"], r["master_weight_bits"]): r for r in ours if r["rule"] == "ADAMW"}
        self.assertEqual(adamw["V2", 24]["bytes_per_parameter"], 12.25)
        self.assertEqual(adamw["FP32", 32]["bytes_per_parameter"], 26)
        peers = [(r["rule"], r["format"], r["implementation"]) for r in report["rows"] if r["implementation"] != "flashshard"]
        expected = [("ADAMW", f, "plain_loop") for f in ("V2", "FLASHOPTIM_V1", "FP32")]
        expected += [("ADAMW", f, "hinted_loop") for f in ("V2", "FLASHOPTIM_V1")]
        self.assertEqual(sorted(peers), sorted(expected * (len(sets) - 1)))
        self.assertEqual(len(out.splitlines()), 3 + len(report["rows"]))

    def test_optimizer_measures_what_was_chosen(self):
        path = self.folder / "bench.json"
        self.call([*self.SMALL, "--rule", "LION", "--format", "V2", "--master", "24", "--isa", "scalar", "--rounding", "NEAREST",
                   "--threads", "2", "--json", path])
        report = json.loads(path.read_text())
        self.assertEqual((report["clock"], report["rounding"], report["threads"]), ("wall", "NEAREST", 2))
        self.assertEqual([(r["rule"], r["format"], r["over_plain_loop"]) for r in report["rows"]], [("LION", "V2", None)])
        self.call(["bench", "optimizer", "--elements", "1048576", "--repeat", "2", "--rule", "SGD", "--format", "V2", "--master", "24",
                   "--threads", "2", "--health", "--json", path])
        rows = json.loads(path.read_text())["rows"]
        sets = len(json.loads(path.read_text())["machine"]["instruction_sets"])
        self.assertEqual([r["implementation"] for r in rows], ["flashshard", "with_health"] * sets)
        # 32768 groups are eight stretches, with one sampled group each, in each of two rounds.
        self.assertEqual([r["sampled_groups"] for r in rows if "sampled_groups" in r], [16] * sets)

    def test_bad_options_are_one_line_and_nothing_is_measured(self):
        for wrong in (["--elements", "0"], ["--elements", "33"], ["--elements", "many"], ["--rule", "PAINT"], ["--format", "V3"],
                      ["--master", "16"], ["--isa", "mmx"], ["--rounding", "UP"], ["--threads", "0"], ["--repeat", "0"],
                      ["--json", self.folder / "nowhere" / "bench.json"], ["--json", self.folder]):
            result = self.call([*self.SMALL, *wrong], code=2)
            self.assertEqual((len(self.errors(result)), result.stdout), (1, ""), result.stderr)
        self.assertEqual(len(self.errors(self.call(["bench"], code=2))), 1)
        self.assertIn("Example", self.call(["bench", "optimizer", "--help"]).stdout)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[1:]])
