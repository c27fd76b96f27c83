"""Secrets of addresses (`scheme://user:password@host`, `?token=...`) and of the environment are used, never shown.

`hide` takes them out of what a person gave, before anything else sees it: configs, messages, records and the arguments
of processes hold `scheme://***@host` and `?token=***`. The secrets lie in the environment of this process, which its
children inherit, and `reveal` puts them back where an address is opened. `mask` is the net below: for text that leaves
the process, since a library's message may hold what the library was called with.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

from shoal.errors import UserError

Value = TypeVar("Value")

MASK = "***"
HIDDEN = "SHOAL_SECRETS"  # in the environment: a JSON object of addresses, without secrets: with them
MIN_CHARS = 8  # a shorter secret is masked in addresses alone: elsewhere it may be a part of any word

# The second form is of a password with a slash, which drivers of databases accept; a port is none.
_USER = r"""(?<=://)(?:[^\s/?#"\\]*|[^\s/?#@:"\\]*:(?!\d+[/?#])[^\s@"\\]*)@"""
_NAME = (
    r"(?i:[\w.-]*(?:token|secret|password|passwd|passphrase|signature|credentials?|(?:api|access|account|secret)key)"
    r"|(?:[\w.-]*[_.-])?(?:key|sig|auth|pwd))"
)
_USERINFO = re.compile(_USER)
_AUTHORITY = re.compile(rf"""[A-Za-z][\w+.-]*://{_USER}[^\s/?#,'"()]*""")
_PARAMETER = re.compile(rf"""([?&]{_NAME}=)[^&#\s,)'"\\]+""")
_WORD = re.compile(r"""[^\s,()'"]+""")
_VARIABLE = re.compile(r"\w*(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|_KEY)", re.IGNORECASE)
_MASKED = re.compile(rf"(?P<scheme>[A-Za-z][\w+.-]*)://{re.escape(MASK)}@|[?&]{_NAME}={re.escape(MASK)}")
# With these variables set an address does without a user and a password.
_AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_MLFLOW = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_INSTEAD = {"s3": _AWS, "http": _MLFLOW, "https": _MLFLOW}


def mask(text: str) -> str:
    """Return a text without the secrets of the addresses in it, and without those that this process knows."""
    text = _masked(text)
    for secret in _known(os.environ.get(HIDDEN, "{}")):
        text = text.replace(secret, MASK)
    return text


def hide(value: Value) -> Value:
    """Return a value of a config with the secrets of all addresses in it masked; `reveal` knows them."""
    found: dict[str, str] = {}

    def shown(match: re.Match[str]) -> str:
        without = _masked(match[0])
        if without != match[0]:
            found[without] = match[0]
        return without

    changed: Value = _map_texts(value, lambda text: _WORD.sub(shown, _AUTHORITY.sub(shown, text)))
    register(found)
    return changed


def reveal(address: str) -> str:
    """Return an address with the secrets that were masked in it.

    Raises:
        UserError: this process does not know them: they are not stored, and were not given again.
    """
    registered = hidden()
    for without in sorted(registered, key=len, reverse=True):  # a whole address, then its server alone
        given = registered[without]
        address = re.sub(rf"{re.escape(without)}(?=$|[/?#&:])", lambda _, given=given: given, address)  # type: ignore[misc]
    while unknown := _MASKED.search(address):
        variables = _INSTEAD.get(unknown["scheme"] or "", ())
        if not variables or not all(map(os.environ.get, variables)):
            instead = f", or set {' and '.join(variables)}" if variables else ""
            raise UserError(
                f"the secret in '{address}' is masked, since secrets are not stored: give the address in full{instead}"
            )
        address = address.replace(f"://{MASK}@", "://", 1)
    return address


def hidden() -> dict[str, str]:
    """Return the addresses with secrets that this process knows, by the same without; for a process elsewhere."""
    return dict(json.loads(os.environ.get(HIDDEN, "{}")))


def register(found: Mapping[str, str]) -> None:
    """Let this process and its children know addresses with secrets, by the same without."""
    if found:
        os.environ[HIDDEN] = json.dumps({**hidden(), **found})


def _masked(text: str) -> str:
    return _PARAMETER.sub(rf"\1{MASK}", _USERINFO.sub(f"{MASK}@", text))


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_texts(inner, change) for key, inner in value.items()}
    return [_map_texts(inner, change) for inner in value] if isinstance(value, list) else value


@functools.lru_cache(maxsize=8)
def _known(registered: str) -> tuple[str, ...]:
    """Return the secrets of the environment, and those of hidden addresses, as text and as JSON writes them."""
    found = {value for name, value in os.environ.items() if name != HIDDEN and _VARIABLE.fullmatch(name)}
    for given in json.loads(registered).values():
        for user in _USERINFO.findall(given):
            name, _, password = user.removesuffix("@").partition(":")
            found |= {password, unquote(password)} if password else {name}
        found |= {match[0].partition("=")[2] for match in _PARAMETER.finditer(given)}
    found |= {json.dumps(secret)[1:-1] for secret in found}
    return tuple(sorted((secret for secret in found if len(secret) >= MIN_CHARS), key=len, reverse=True))
