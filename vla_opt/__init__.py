"""Spectral optimizers for vision-language-action policies, and the experiments made with them.

Importing this package imports nothing heavy: take what you need from the modules,
for example ``from vla_opt.optim import Pion``.
"""

__version__ = "0.1.0"
