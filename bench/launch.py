"""Runs one command and writes what it took to a file descriptor: launch.py FD COMMAND...

A process of its own, because Linux counts a program's peak memory from what the process it was forked from had. This one
has some 10 MB, so no less is ever reported. One line: start in Unix nanoseconds, then seconds of wall and of processor time,
peak memory of the largest process, bytes written, exit status.
"""

import os
import sys
import time

out = int(sys.argv[1])
os.set_inheritable(out, False)
started, start = time.time_ns(), time.monotonic()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
wall = time.monotonic() - start
cpu = usage.ru_utime + usage.ru_stime
figures = (started, wall, cpu, usage.ru_maxrss * 1024, usage.ru_oublock * 512, os.waitstatus_to_exitcode(status))
os.write(out, " ".join(map(str, figures)).encode())
