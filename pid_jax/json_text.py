"""Serialisation to JSON text that every JSON parser reads."""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(content: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON text with null for NaN and infinities.

    Characters are not escaped, unless a text has an unpaired surrogate, which UTF-8 cannot encode.
    """
    try:
        text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        content = _without_infinities(content)
        text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent, allow_nan=False)
    return text


def _without_infinities(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
