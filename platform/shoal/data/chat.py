"""Chat messages become text by a template: each message between marks, with its role.

It knows messages alone; independent of files and tokenizers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The marks of ChatML, which several open models use: a role, a line end, the content.
TEMPLATE = "<|im_start|>{role}\n{content}<|im_end|>\n"
KEYS = (("role", "content"), ("from", "value"))
ROLES = {"human": "user", "gpt": "assistant"}  # as ShareGPT calls them


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages, each with a role and a content, or the columns of such a list."""
    if isinstance(value, Mapping):
        return any(
            keys <= value.keys() and _is_list(value[role])
            for keys, (role, _) in zip(_KEY_SETS, KEYS, strict=True)
        )
    return (
        _is_list(value)
        and len(value) > 0
        and all(isinstance(item, Mapping) and _keys(item) for item in value)
    )


def holds_messages(column: np.ndarray) -> bool:
    """Whether a column is of chat messages, judged by its first value that is not missing."""
    return column.dtype == object and is_messages(
        next((value for value in column if value is not None), None)
    )


def chat_text(value: Any) -> str:
    """Return messages as one text.

    Args:
        value: for which `is_messages` holds.

    Raises:
        ValueError: a content is no text.
    """
    if isinstance(value, Mapping):
        role, content = _keys(value)
        pairs = list(zip(value[role], value[content], strict=True))
    else:
        pairs = [tuple(message[key] for key in _keys(message)) for message in value]
    return "".join(
        TEMPLATE.format(role=ROLES.get(role, role), content=_text(content)) for role, content in pairs
    )


_KEY_SETS = tuple(map(set, KEYS))


def _keys(message: Mapping[str, Any]) -> tuple[str, ...]:
    return next((keys for keys in KEYS if set(keys) <= message.keys()), ())


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _text(content: Any) -> str:
    """Return the text of a content: a text, none where a tool is called, or a list of parts of text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if _is_list(content) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    ):
        return "".join(part["text"] for part in content)
    raise ValueError(f"the content {str(content)[:60]!r} is no text")
