#!/usr/bin/env python3
"""Counts the instructions of a command and of all that it starts, in user mode, by stepping through them (ptrace(2)).

usage: instructions.py command…

For machines without hardware counters; Valgrind knows neither clone3 nor open_tree, so it cannot run a container runtime.
"""
import ctypes
import os
import signal
import sys

TRACEME, STEP, SETOPTIONS = 0, 9, 0x4200
# PTRACE_O_TRACEFORK, _VFORK, _CLONE, _EXEC and _EXITKILL.
OPTIONS = 0x2 | 0x4 | 0x8 | 0x10 | 0x100000
WALL = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long

first = os.fork()
if first == 0:
    libc.ptrace(TRACEME, 0, None, None)
    os.execvp(sys.argv[1], sys.argv[1:])
os.waitpid(first, 0)
libc.ptrace(SETOPTIONS, first, None, OPTIONS)
libc.ptrace(STEP, first, None, None)

count = 0
code = None
known = {first}
while True:
    try:
        pid, status = os.waitpid(-1, WALL)
    except ChildProcessError:
        break
    if not os.WIFSTOPPED(status):
        if pid == first:
            code = os.waitstatus_to_exitcode(status)
        continue
    number = os.WSTOPSIG(status)
    pass_on = number
    if number == signal.SIGTRAP:
        pass_on = 0
        count += status >> 16 == 0
    elif number == signal.SIGSTOP and pid not in known:
        # How a new process is handed to its tracer.
        pass_on = 0
    known.add(pid)
    # It may have been killed meanwhile.
    libc.ptrace(STEP, pid, None, pass_on)
print(count)
sys.exit(0 if code == 0 else 1)
