"""`python -m vla_opt._job_process`: one job in a process that ends with its parent.

The job comes pickled through standard input, which the parent then keeps open: when it closes, the
parent is gone and this process ends too.
"""

import os
import pickle
import sys
import threading


def main() -> int:
    """Call the job; what it returns is the exit code."""
    job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return int(job() or 0)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin, whose lock this thread would keep
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
