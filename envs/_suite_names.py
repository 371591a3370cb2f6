"""Prefixes of suites that are made of variants; apart, so that naming them loads nothing."""

PLUS = "libero_plus"
STYLE = "libero_style"

STEP_LIMITS: dict[str, int] = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Suite -> episode limit in control steps (20 Hz) after settling, as in OpenVLA and openpi."""

SETTLE_STEPS = 10
"""Control steps with the gripper open before an episode counts, as there."""
