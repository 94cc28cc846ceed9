"""The flag of a file that forbids everybody to write it, root too, and those who have it open (Linux, `chattr +i`)."""

import array
import fcntl
import os
from pathlib import Path

_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10  # linux/fs.h, 64 bits


def immutable(path: Path, on: bool) -> None:
    """Sets the flag, or takes it away. Raises OSError where the file system has none, or who asks may not."""
    fd = os.open(path, os.O_RDONLY)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(fd, _GET_FLAGS, flags, True)
        flags[0] = flags[0] | _IMMUTABLE if on else flags[0] & ~_IMMUTABLE
        fcntl.ioctl(fd, _SET_FLAGS, flags)
    finally:
        os.close(fd)
