"""Exit codes: those of sysexits.h where it has one, so that scripts can tell faults apart."""

OK = 0
FOUND = 1  # the job found what it looks for: a divergence
USAGE = 64
DATA = 65
UNAVAILABLE = 69  # a peer, device or socket is missing
SOFTWARE = 70
NOPERM = 77
CONFIG = 78
