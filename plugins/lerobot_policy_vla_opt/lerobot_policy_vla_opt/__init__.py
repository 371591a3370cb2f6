"""Imported by lerobot's commands: registers the policies and optimizers of vla-opt."""

import policies
import vla_opt.lerobot_plugin  # noqa: F401

policies.register_all()
