"""The derivative of a loss along a direction, by forward-mode differentiation of the real thing.

The parameters themselves become dual numbers for one call of the closure, so any closure works; no
functional copy of the model is needed. Scaled-dot-product attention has a forward-mode derivative
only in its plain ("math") form, which is chosen for the call.
"""

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla_opt.zeroth_order.records import Reading


def directional_derivative(
    closure: Callable[[], Tensor | float], tangents: Iterable[tuple[Tensor, Tensor]]
) -> Reading:
    """Evaluate a loss and its derivative along a direction.

    Args:
        closure: returns the loss as a tensor that depends on the weights.
        tangents: (parameter, direction of the same shape and dtype).

    Returns:
        Loss and derivative; the latter is 0 if the loss does not depend on the weights.

    Raises:
        TypeError: the closure returned a number, through which nothing can be differentiated.
    """
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        for parameter, tangent in tangents:
            dual = forward_ad.make_dual(parameter.clone(), tangent)
            parameter.copy_(dual)
        loss = closure()
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"the closure returned a {type(loss).__name__}; a forward gradient needs the loss "
                "as a tensor. Use another estimator for losses that are not differentiable."
            )
        value, slope = forward_ad.unpack_dual(loss)
        return Reading(loss=float(value), slope=0.0 if slope is None else float(slope))
