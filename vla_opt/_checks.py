"""Checks of numbers in configurations."""


def require_at_least(name: str, value: float, least: float) -> None:
    """Raise ValueError, with the name, unless value >= least; NaN is not.

    >>> require_at_least("steps", 0, 1)
    Traceback (most recent call last):
    ValueError: steps=0: expected at least 1.
    """
    if not value >= least:
        raise ValueError(f"{name}={value}: expected at least {least}.")
