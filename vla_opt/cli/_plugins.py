"""Policy types of other packages, found the way stock lerobot finds them."""

from __future__ import annotations

from collections.abc import Sequence

from vla_opt.errors import ConfigError

_OPTION = ".discover_packages_path"


def load_policies(argv: Sequence[str]) -> list[str]:
    """Register every policy type that a configuration may name.

    Those are ours, lerobot's, those of installed packages called ``lerobot_policy_*``, and those of
    packages named with ``--policy.discover_packages_path=PACKAGE``.

    Returns:
        The arguments without that option.

    Raises:
        ConfigError: A package that was named cannot be imported.
    """
    import lerobot.policies  # noqa: F401 - registers lerobot's
    from lerobot.configs.parser import PluginLoadError, load_plugin
    from lerobot.utils.import_utils import register_third_party_plugins

    import policies  # noqa: F401 - registers ours

    register_third_party_plugins()
    for word in argv:
        key, _, package = word.partition("=")
        if key.endswith(_OPTION):
            try:
                load_plugin(package)
            except PluginLoadError as error:
                raise ConfigError(f"{word}: {error}") from error
    return [word for word in argv if not word.partition("=")[0].endswith(_OPTION)]


def plugin_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments that `load_policies` took out, to hand them to another process."""
    return [word for word in argv if word.partition("=")[0].endswith(_OPTION)]
