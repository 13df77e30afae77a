"""Keeping the host's memory between steps, which on a CPU can be half of a step's time.

XLA's CPU backend asks malloc for a step's temporaries (hundreds of megabytes) and frees them again.
glibc gives blocks of that size back to the kernel at once, so every step touches fresh pages:
88,000 page faults a step of the demo, none with this.
"""

import ctypes
import platform

# Names and numbers of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


def keep_freed_memory() -> None:
    """Makes malloc keep what is freed, from now to the end of this process; glibc alone has this.

    Call it before JAX makes its threads. The process then holds its peak until it ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_ARENA_MAX, 1)  # other threads' arenas cannot hold blocks of this size
    libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 2**26)
