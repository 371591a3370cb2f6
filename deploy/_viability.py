"""Speeds from which a stream of joint targets can still stop in time.

Targets come once per period, so a speed chosen now is kept for a whole period, and braking happens
in steps of at most A = acceleration x period. A speed is viable when braking from it, beginning one
period later, crosses no bound. Every viable state has a viable successor (the braking one); the
filter never leaves this set, which is why no sequence of inputs can drive it over a limit.
"""

from __future__ import annotations

import numpy as np

from deploy.limits import ENVELOPES, Array, JointLimits, SpeedEnvelope

_RESERVE = 0.98  # share of the acceleration that braking counts on; the rest absorbs rounding


def viable_speeds(q: Array, limits: JointLimits, period: float) -> tuple[Array, Array]:
    """Least and greatest viable speed for the period that begins at `q`.

    Args:
        q: (7,) target of the period before; rad.
        limits: Bounds on position, speed and acceleration.
        period: s.

    Returns:
        Two (7,) arrays in rad/s; the first is never above zero, the second never below.
    """
    up = _speed_towards(q, limits, period, sign=1)
    down = _speed_towards(q, limits, period, sign=-1)
    return -down, up


def _speed_towards(q: Array, limits: JointLimits, period: float, *, sign: int) -> Array:
    acceleration = limits.acceleration * _RESERVE
    stop = limits.upper if sign > 0 else limits.lower
    speed = np.minimum(limits.speed, _before_stop(sign * (stop - q), acceleration, period))
    for envelope in ENVELOPES:
        edge = envelope.upper if sign > 0 else envelope.lower
        room = sign * (edge - q)
        speed = np.minimum(speed, _below_envelope(room, envelope, acceleration, period))
    return np.asarray(np.maximum(speed, 0.0))


def _before_stop(room: Array, acceleration: Array, period: float) -> Array:
    """Greatest v with which braking ends within `room`.

    Braking from v in steps of A = a dt covers v dt + (v - A) dt + (v - 2A) dt + ..., which is at
    most v^2 / 2a + v dt / 2 + a dt^2 / 8, with equality half-way between multiples of A. Solved for
    v: sqrt(2 a room) - a dt / 2. Below one step of braking only the first period counts.
    """
    step = acceleration * period
    room = np.maximum(room, 0.0)
    long = np.maximum(step, np.sqrt(2 * acceleration * room) - step / 2)
    return np.asarray(np.where(room / period <= step, room / period, long))


def _below_envelope(
    room: Array, envelope: SpeedEnvelope, acceleration: Array, period: float
) -> Array:
    """Greatest v that the envelope still allows where it leads within one period.

    (v + offset)^2 <= 2 d (room - v dt), solved for v. With d no greater than the acceleration,
    braking follows the envelope down; joints whose table assumes more get the smaller d.
    """
    deceleration = np.minimum(envelope.deceleration, acceleration)
    half = envelope.offset + deceleration * period
    under = half**2 + 2 * deceleration * np.maximum(room, 0.0) - envelope.offset**2
    return np.asarray(np.maximum(0.0, np.sqrt(np.maximum(under, 0.0)) - half))


def braked(speed: Array, limits: JointLimits, period: float) -> Array:
    """The speed after one period of the braking that `braking_path` foresees."""
    left = np.maximum(np.abs(speed) - limits.acceleration * _RESERVE * period, 0.0)
    return np.asarray(np.sign(speed) * left)


def braking_path(q: Array, speed: Array, limits: JointLimits, period: float) -> Array:
    """Targets (n, 7) from `q` on when every joint brakes as hard as it may; the last one rests."""
    step = limits.acceleration * _RESERVE * period
    count = int(np.ceil(np.max(np.abs(speed) / step))) + 1
    left = np.maximum(np.abs(speed) - step * np.arange(count)[1:, None], 0.0)
    moves = np.sign(speed) * left * period
    return np.concatenate([q[None], q + np.cumsum(moves, axis=0)])
