"""The machine's memory: how much there is, and that it stays the machine's own."""

import contextlib
import mmap
import os
import signal
import time
from pathlib import Path

from common import MIB, Failure, say

BLOCK = 2 * MIB
LEFT_FREE_MIB = 2048


def mib(field):
    """A field of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) // 1024
    raise Failure(f"/proc/meminfo has no {field}")


@contextlib.contextmanager
def kept():
    """Keeps a virtual machine's free memory from going back to its host.

    A host that is told of free memory (the balloon's free page reporting) takes it away within seconds, and gives it
    back at some 2 s a GiB: 4 GiB of page cache then cost more than whatever fills them. Only free blocks of 2 MiB are
    told of; so all free memory is touched once, and one page of every block is held on to."""
    length = (mib("MemFree") - LEFT_FREE_MIB) * MIB // BLOCK * BLOCK
    if not is_taken() or length <= 0:
        yield
        return
    say(f"the host takes free memory away: keeping {length // MIB} MiB of it")
    ready, tell = os.pipe()
    # A process of its own: what is measured would be told this one's peak memory as its own.
    keeper = os.fork()
    if keeper == 0:
        try:
            keep(length, tell)
        finally:
            os._exit(1)
    try:
        os.close(tell)
        with open(ready, "rb") as told:
            if not told.read(1):
                raise Failure("the process that keeps free memory ended early")
        yield
    finally:
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)


def keep(length, tell):
    """Holds on to memory for as long as the process that began it runs."""
    parent = os.getppid()
    held = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(0, length, mmap.PAGESIZE):
        held[page] = 1
    for block in range(0, length, BLOCK):
        held.madvise(mmap.MADV_DONTNEED, block + mmap.PAGESIZE, BLOCK - mmap.PAGESIZE)
    os.write(tell, b"!")
    while os.getppid() == parent:
        time.sleep(1)


def is_taken():
    """Whether the host is told of free memory: VIRTIO_BALLOON_F_PAGE_REPORTING, bit 5 of the features."""
    features = Path("/sys/bus/virtio/drivers/virtio_balloon").glob("virtio*/features")
    return any(bits.read_text()[5:6] == "1" for bits in features)
