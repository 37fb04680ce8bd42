"""A wall clock that is wrong, for the programs that are started with it: a library that is loaded before libc.

libfaketime would be the library to take, but of Debian's 0.9.10 no Python of today survives: a thread that waits for
something, waits an hour; and where its monotonic clock is left alone, ``time.sleep`` fails.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int status = syscall(SYS_clock_gettime, clock, now);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += OFF;
    return status;
}

int gettimeofday(struct timeval *now, void *zone)
{
    int status = syscall(SYS_gettimeofday, now, zone);
    if (status == 0)
        now->tv_sec += OFF;
    return status;
}

time_t time(time_t *here)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (here != NULL)
        *here = now.tv_sec;
    return now.tv_sec;
}
"""


def wrong_clock(folder: Path, seconds: int) -> str:
    """Make the library; the start of a command line whose program has a clock that is so many seconds fast."""
    library = folder / f"clock{seconds:+d}.so"
    compile_it = ["cc", "-shared", "-fPIC", f"-DOFF=({seconds})", "-x", "c", "-", "-o", str(library)]
    subprocess.run(compile_it, input=_SOURCE, text=True, check=True)
    return f"LD_PRELOAD={library}"
