"""The world of `rl_toys` for runs in other processes, which take the evaluation of this module."""

import fake_eval
import rl_toys

import vla_opt.rl.run

vla_opt.rl.run.evaluate = fake_eval.evaluate  # also where this was imported to unpickle `Reach`


class Reach(rl_toys.Reach):
    """See `rl_toys.Reach`."""
