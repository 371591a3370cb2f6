"""DROID's control law at 1 kHz in compiled code: aiofranka, on the official libfranka.

The law is Python that numba compiles; the loop is C++. Coriolis torques are left out: aiofranka
does not hand them to a law, and below 1 rad/s they are smaller than the joints' friction.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, NoReturn

import numpy as np

from deploy.drivers import ArmState, ControllerProfile, Realtime, droid_torque, needed
from deploy.drivers._connection import not_connected
from deploy.drivers._libfranka import LibfrankaHandMotions, arm_state
from deploy.drivers.profiles import DROID
from deploy.errors import ReflexError, RobotDisconnectedError, RobotError, UserStopError
from deploy.limits import Array, joint_target

_PACKAGE = "aiofranka[native]"
_START_S = 120.0  # wall time; the loop waits a second by itself, and machines are slow
_REFLEX_WORDS = ("reflex", "aborted", "violation", "discontinuity", "control_exception")


class AioFrankaDriver:
    """See `deploy.drivers.ArmDriver`.

    Args:
        host: Address of the control box.
        realtime: "ignore" runs on any kernel; aiofranka itself does not insist on a real-time one,
            so "enforce" is checked here.
        profile: Law and gains.
    """

    def __init__(
        self, host: str, *, realtime: Realtime = "enforce", profile: ControllerProfile = DROID
    ) -> None:
        if realtime == "enforce":
            _demand_realtime()
        self._native = needed("aiofranka.native", _PACKAGE)
        self._aio = needed("aiofranka", _PACKAGE)
        self.profile, self._host = profile, host
        self._error: str | None = None
        self._running = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._robot: Any = self._aio.RobotInterface(host, read_tool=False)
            self._control: Any = self._native.NativeFrankaController(self._robot)
        except Exception as error:  # libfranka's and aiofranka's have no common class
            self._end_thread()
            raise not_connected(host, error) from error
        self._control.error_callback = self._note_error
        self._control.track = False
        self._law = _law(self._native)

    def read(self) -> ArmState:
        """See `ArmDriver.read`."""
        self._raise_error()
        state = self._robot.robot_state
        if not self._running or state is None:
            with self._explained():
                state = self._robot.robot.read_once()
        return _state(state)

    def move_to(self, q: Array) -> None:
        """See `ArmDriver.move_to`."""
        target = joint_target(q)
        self._raise_error()
        if not self._running:
            self._begin(target)
        self._control.q_desired = target

    def halt(self, *, clear_errors: bool = False) -> None:
        """See `ArmDriver.halt`."""
        error, self._error = self._error, None
        if self._running:
            self._running = False
            with self._explained():
                self._do(self._control.stop())
        if clear_errors:
            with self._explained():
                self._robot.robot.automatic_error_recovery()
        elif error is not None:
            self._explain(error)

    def close(self) -> None:
        """See `ArmDriver.close`."""
        with contextlib.suppress(RobotError):
            self.halt()
        self._end_thread()

    def open_hand(self) -> LibfrankaHand:
        """Connect to the Franka Hand of this arm."""
        return LibfrankaHand(self._host)

    def _begin(self, target: Array) -> None:
        profile, control = self.profile, self._control
        with self._explained():
            control.switch(self._law)
            control.q_desired = target
            control.joint_gain = np.array(profile.joint_stiffness)
            control.joint_damp = np.array(profile.joint_damping)
            control.hand_gain = np.array(profile.cartesian_stiffness)
            control.hand_damp = np.array(profile.cartesian_damping)
            self._do(control.start())
        self._running = True

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_S)

    def _note_error(self, text: str) -> None:
        self._error, self._running = text, False

    def _raise_error(self) -> None:
        if self._error is not None:
            self._explain(self._error)

    @contextlib.contextmanager
    def _explained(self) -> Any:
        try:
            yield
        except RobotError:
            raise
        except Exception as error:  # libfranka's and aiofranka's have no common class
            self._explain(str(error))

    def _explain(self, text: str) -> NoReturn:
        low = text.lower()
        if "user_stop" in low or "user stop" in low:
            raise UserStopError(f"the robot at {self._host} was stopped by hand: {text}")
        if any(word in low for word in _REFLEX_WORDS):
            names = tuple(w.strip('[]",. ') for w in text.split() if "_" in w)
            raise ReflexError(
                f"the robot at {self._host} stopped by itself: {text}. Look at it, remove the "
                "cause, then confirm.",
                names,
            )
        raise RobotDisconnectedError(f"lost the robot at {self._host}: {text}")

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


def _law(native: Any) -> Any:
    """`droid_torque` as a law that aiofranka compiles and calls at 1 kHz."""
    torque = needed("numba", "numba").njit(droid_torque, error_model="numpy")

    def droid(s: Any, p: Any, m: Any, tau: Any) -> None:
        nothing = np.zeros(7)
        tau[:] = torque(
            p.q_desired,
            s.qpos,
            s.qvel,
            s.jac,
            nothing,
            p.joint_gain,
            p.joint_damp,
            p.hand_gain,
            p.hand_damp,
        )

    sizes = {"joint_gain": 7, "joint_damp": 7, "hand_gain": 6, "hand_damp": 6}
    return native.control_law(droid, params=sizes)


def _state(state: Any) -> ArmState:
    return arm_state(
        state,
        mode=str(state.robot_mode).rpartition(".")[2].removeprefix("k").lower(),
        tool_pose=np.array(state.O_T_EE).reshape(4, 4).T,
        flange_to_tool=np.array(state.F_T_EE).reshape(4, 4).T,
    )


def _demand_realtime() -> None:
    """Raise unless the kernel is a real-time one, as libfranka itself would."""
    try:
        with open("/sys/kernel/realtime") as flag:
            if flag.read().strip() == "1":
                return
    except OSError:
        pass
    raise RobotError(
        "this kernel has no real-time capabilities. A real arm needs PREEMPT_RT; for a simulated "
        "one say realtime='ignore'."
    )


class LibfrankaHand(LibfrankaHandMotions):
    """The Franka Hand through pylibfranka; see `deploy.grippers.HandConnection`."""

    def __init__(self, host: str) -> None:
        official = needed("pylibfranka", "pylibfranka")
        try:
            super().__init__(official.Gripper(host))
        except Exception as error:  # pylibfranka's errors have no common class
            raise RobotDisconnectedError(
                f"no Franka Hand answers at {host} ({error}): is it mounted and set up in Desk?"
            ) from error

    def widths(self) -> tuple[float, float]:
        """See `HandConnection.widths`."""
        state = self._hand.read_once()
        return float(state.width), float(state.max_width)
