"""The memory allocator of the command's own process.

glibc gives the large buffers of each forward pass back to the system, and takes them
anew for the next: thousands of page faults for each pass. A process that runs the same
passes for minutes is faster if it keeps them.
"""

import ctypes
import os
import sys

LEAVE = "CAPTUM_UNIONCAM_LEAVE_MALLOC"
# Of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
NEVER = -1


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, unless the environment sets its malloc already.

    It changes nothing where there is no glibc, or with LEAVE in the environment.
    """
    chosen = [name for name in os.environ if name.startswith("MALLOC_")]
    if chosen or "GLIBC_TUNABLES" in os.environ or os.environ.get(LEAVE):
        return
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_MAX, 0)  # no buffer is a mapping of its own
        library.mallopt(M_TRIM_THRESHOLD, NEVER)
