"""Secrets: refused in configurations, blotted out in what is logged."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

BLOT = "***"
STORAGE_VARIABLE = "MIRAGE_SWEEP_STORAGE"  # a URL, which may hold a password
_WORD = r"(?:passw(?:or)?d|passphrase|secret|token|api_?key|access_?key|private_?key|credentials?)"
_KEY = re.compile(rf"(?:^|_){_WORD}s?(?:$|_)", re.IGNORECASE)
_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSWO?R?D|CREDENTIAL", re.IGNORECASE)
_IN_URL = re.compile(r"([a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+@", re.IGNORECASE)
_ASSIGNED = re.compile(rf"({_WORD}[\"']?\s*[=:]\s*[\"']?)[^\s\"',;]+", re.IGNORECASE)
_SHORTEST = 8  # characters; anything shorter would be found in innocent words


def secrets_of_environment() -> dict[str, str]:
    """Return the values of the environment variables whose names say that they are secret, by name."""
    return {
        name: value
        for name, value in os.environ.items()
        if _VARIABLE.search(name) and len(value) >= _SHORTEST and not os.path.exists(value)
    }


def problems_of_secrets(config: dict[str, Any]) -> list[str]:
    """Return a sentence for each value of a configuration that looks like a secret; none of them quotes it.

    A run directory holds its configuration and can be handed on.
    """
    known = secrets_of_environment()
    problems = []
    for key, value in _leaves(config):
        if value and any(map(_KEY.search, key.split("."))):
            problems.append(f"{key}: looks like a secret, and a run records its configuration; {_INSTEAD}")
        elif isinstance(value, str) and _IN_URL.search(value):
            problems.append(f"{key}: holds a password in a URL, and a run records its configuration; {_INSTEAD}")
        elif name := next((name for name, secret in known.items() if secret in f"{key} {value}"), None):
            problems.append(f"{key}: holds the value of {name}, and a run records its configuration; {_INSTEAD}")
    return problems


_INSTEAD = (
    "leave it out and let the tool that needs it read it from the environment (W&B: WANDB_API_KEY, the storage of a "
    f"sweep: {STORAGE_VARIABLE})"
)


def redacted(text: str) -> str:
    """Return a text without secrets: those of the environment, passwords in URLs, and what is assigned to one."""
    for secret in secrets_of_environment().values():
        text = text.replace(secret, BLOT)
    return _ASSIGNED.sub(rf"\1{BLOT}", _IN_URL.sub(rf"\1{BLOT}@", text))


class RedactingFormatter(logging.Formatter):
    """Formats a record and takes out its secrets, and what else ``hide`` takes out."""

    def __init__(self, template: str, hide: Callable[[str], str] = str) -> None:
        super().__init__(template)
        self.hide = hide

    def format(self, record: logging.LogRecord) -> str:
        """Return the whole text of a record, traceback included."""
        return redacted(self.hide(super().format(record)))


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node
