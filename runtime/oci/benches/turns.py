#!/usr/bin/env python3
"""Times commands that take turns, so that what else the machine does meets all of them alike.

usage: turns.py [--parallel] [--prepare SCRIPT]… ROUNDS TIMES command…

A command is one argument, split as a shell would; `{i}` in it becomes a number. Each round runs every command TIMES times in a
row (with --parallel: at once), after the preparation of that command: a script for sh, as many as there are commands or none.
They are spawned directly: a shell's fork would be a part of what is measured. Prints a command's median, in milliseconds for
one time, per line. The first round warms up and does not count.
"""
import argparse
import os
import shlex
import statistics
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--parallel", action="store_true")
parser.add_argument("--prepare", action="append", default=[])
parser.add_argument("rounds", type=int)
parser.add_argument("times", type=int)
parser.add_argument("command", nargs="+")
args = parser.parse_args()

QUIET = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]


def spawn(command, number):
    words = [word.replace("{i}", str(number)) for word in command]
    return os.posix_spawnp(words[0], words, os.environ, file_actions=QUIET)


def wait(pid, command):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        sys.exit(f"{shlex.join(command)}: exit code {code}")


def sample(command):
    start = time.perf_counter()
    if args.parallel:
        pids = [spawn(command, number) for number in range(args.times)]
        for pid in pids:
            wait(pid, command)
    else:
        for number in range(args.times):
            wait(spawn(command, number), command)
    return (time.perf_counter() - start) * 1000 / args.times


commands = [shlex.split(command) for command in args.command]
prepare = args.prepare or [None] * len(commands)
samples = [[] for _ in commands]
for turn in range(args.rounds + 1):
    for command, script, values in zip(commands, prepare, samples, strict=True):
        if script:
            subprocess.run(["sh", "-c", script], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        value = sample(command)
        if turn > 0:
            values.append(value)
for values in samples:
    print(f"{statistics.median(values):.6f}")
