"""Policy types of other packages, found the way stock lerobot finds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_opt.cli._config import read_flags, read_yaml
from vla_opt.errors import ConfigError

_OPTION = ".discover_packages_path"


def load_policies(argv: Sequence[str]) -> list[str]:
    """Register every policy type that a command names.

    Ours are registered always, except pi_0.5. It, lerobot's, those of installed packages called
    ``lerobot_policy_*`` and those of packages named with
    ``--policy.discover_packages_path=PACKAGE`` are registered only where a type that is none of
    ours is named: importing them all takes many seconds.

    Returns:
        The arguments without that option.

    Raises:
        ConfigError: A package that was named cannot be imported.
    """
    from lerobot.configs import PreTrainedConfig

    import policies

    words = [word for word in argv if not word.partition("=")[0].endswith(_OPTION)]
    if len(words) < len(argv) or _types(words) - PreTrainedConfig.get_known_choices().keys():
        policies.register_all()
        _load_others(argv)
    return words


def plugin_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments that `load_policies` took out, to hand them to another process."""
    return [word for word in argv if word.partition("=")[0].endswith(_OPTION)]


def _load_others(argv: Sequence[str]) -> None:
    from lerobot.configs.parser import PluginLoadError, load_plugin
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    for word in plugin_arguments(argv):
        try:
            load_plugin(word.partition("=")[2])
        except PluginLoadError as error:
            raise ConfigError(f"{word}: {error}") from error


def _types(words: Sequence[str]) -> set[str]:
    """Policy types that the command and its file name."""
    flags = read_flags([word for word in words if word not in {"-h", "--help"}])
    named = {value for key, value in flags.items() if f".{key}".endswith(".policy.type")}
    path = Path(flags.get("config_path", ""))
    return named | set(_types_in(read_yaml(path)) if path.is_file() else ())


def _types_in(tree: Mapping[str, Any]) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if key == "policy" and "type" in value:
                yield str(value["type"])
            yield from _types_in(value)
