"""The weathers the network detects and takes away, by name. Free of torch: the command line reads it too."""

from collections.abc import Collection

from moevision.errors import UsageError

WEATHERS = ("rain", "drops", "snow", "haze")


def known_weathers(names: str | Collection[str]) -> tuple[str, ...]:
    """The named weathers (one name, or several in any order) in the order of WEATHERS.

    Raises:
        UsageError: a name that is not in WEATHERS.
    """
    names = [names] if isinstance(names, str) else names
    if unknown := sorted(set(names) - set(WEATHERS)):
        raise UsageError(f"weather {unknown[0]!r}: unknown; choose from {', '.join(WEATHERS)}")
    return tuple(weather for weather in WEATHERS if weather in names)
