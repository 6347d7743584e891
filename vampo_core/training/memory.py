"""Memory of this process: its peak, and the C library's allocator, which training on a CPU keeps busy."""

import ctypes
import platform
import resource

import torch

# <malloc.h> of glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next step, instead of giving them back to the kernel.

    Every step of a training frees what the next one allocates again. glibc returns blocks above 32 MiB at once, and the
    kernel has to clear each of their pages the next time: at real latent sizes more than half of a CPU's time. After
    this call freed memory stays with the process until it ends; with glibc 2.36 and newer, blocks of 1 GiB and more go
    back. Other allocators (musl's, jemalloc, mimalloc, tcmalloc) and other systems notice nothing.

    Returns:
        whether the C library is glibc and took the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    taken = mallopt(_TRIM_THRESHOLD, -1) and mallopt(_TOP_PAD, 64 << 20)
    # before glibc 2.36 the threshold has a maximum of 32 MiB: no block of its own for anything, then
    return bool(taken and (mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_MAX, 0)))


def peak_memory_mb() -> float:
    """Largest memory so far in MiB: what torch took of the GPU, or without one the process of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
