"""What the launcher and its caller tell each other: the levels, the launcher's exit status, and how reports begin."""

NONE, LANDLOCK, NAMESPACES, BUBBLEWRAP = range(4)
ENDED, TIMED_OUT, MEMORY, PROCESSES, DISK, CANCELLED, BROKEN = 0, 10, 11, 12, 13, 14, 15
REPORT_ENDED, REPORT_BROKEN = b"E", b"X"
