"""Imported by lerobot's commands: registers the policies and optimizers of vla-opt."""

import policies  # noqa: F401
import vla_opt.lerobot_plugin  # noqa: F401
