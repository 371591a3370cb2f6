"""What a variant of a task may change, and when: the hooks between a variant and `LiberoEnv`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a configuration names suites without loading numpy
    import numpy as np
    from numpy.typing import NDArray


class Perturbation:
    """Changes nothing; a variant overrides the hooks it needs.

    The hooks are called in the order in which they stand here. All are deterministic: what is drawn
    at random is drawn from the variant's name or the episode's seed.
    """

    @contextmanager
    def construction(self) -> Iterator[dict[str, Any]]:
        """Surround the construction of the scene; yields keyword arguments of its problem class."""
        yield {}

    def on_model(self, inner: Any) -> None:
        """Change the compiled model, before anything is drawn from it.

        The camera poses and the robot's rest posture are those of the unperturbed scene when this
        is called, also when the scene was used for another variant before.

        Args:
            inner: the robosuite environment; its OpenGL context, if it has one, is current.
        """

    def on_draw(self, inner: Any) -> None:
        """Change a scene that was drawn at random, before anything moves in it."""

    def on_init_state(self, state: NDArray[np.float64], inner: Any) -> NDArray[np.float64]:
        """Return the state to start from, (1 + nq + nv,), for a fixed initial state."""
        return state

    def on_image(
        self, camera: str, image: NDArray[np.uint8], rng: np.random.RandomState
    ) -> NDArray[np.uint8]:
        """Return what the policy sees of one camera.

        Args:
            camera: observation key, "image" or "image2".
            image: (H, W, 3) as the simulator has it, upside down.
            rng: a function of the episode's seed and the control step, of nothing else.
        """
        return image


class Combined(Perturbation):
    """Several perturbations, one after the other."""

    def __init__(self, *parts: Perturbation) -> None:
        self._parts = parts

    @contextmanager
    def construction(self) -> Iterator[dict[str, Any]]:
        """Surround the construction by all of them."""
        options: dict[str, Any] = {}
        with ExitStack() as stack:
            for part in self._parts:
                options.update(stack.enter_context(part.construction()))
            yield options

    def on_model(self, inner: Any) -> None:
        """Change the model as each of them does."""
        for part in self._parts:
            part.on_model(inner)

    def on_draw(self, inner: Any) -> None:
        """Change the scene as each of them does."""
        for part in self._parts:
            part.on_draw(inner)

    def on_init_state(self, state: NDArray[np.float64], inner: Any) -> NDArray[np.float64]:
        """Pass the state through all of them."""
        for part in self._parts:
            state = part.on_init_state(state, inner)
        return state

    def on_image(
        self, camera: str, image: NDArray[np.uint8], rng: np.random.RandomState
    ) -> NDArray[np.uint8]:
        """Pass the image through all of them."""
        for part in self._parts:
            image = part.on_image(camera, image, rng)
        return image


UNPERTURBED = Perturbation()
