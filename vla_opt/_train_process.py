"""`python -m vla_opt._train_process`: one training in a process that ends with its parent.

The configuration comes pickled through standard input, which the parent then keeps open: when it
closes, the parent is gone and this process ends too. The run can be gone on with.
"""

import os
import pickle
import sys
import threading

DIVERGED = 3
"""Exit code after a loss or gradient that is not finite."""


def main() -> int:
    """Train; the exit code says how it ended."""
    config = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from vla_opt.train import NonFiniteError, train

    try:
        train(config)
    except NonFiniteError as error:
        sys.stderr.write(f"{error}\n")
        return DIVERGED
    return 0


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin, whose lock this thread would keep
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
