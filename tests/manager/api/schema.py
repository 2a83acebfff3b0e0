# SPDX-License-Identifier: Apache-2.0
"""Compares JSON with a schema of the API's description: as much of JSON Schema as the description uses, and stricter:
what is not described must not be there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def mistakes(value: Any, schema: Mapping[str, Any], known: Mapping[str, Any], path: str = "$") -> Iterator[str]:
    """Everything in which the value is not as described."""
    if "$ref" in schema:
        yield from mistakes(value, known[schema["$ref"].rpartition("/")[2]], known, path)
        return
    if "anyOf" in schema:
        found = [list(mistakes(value, one, known, path)) for one in schema["anyOf"]]
        yield from min(found, key=len)
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    names = schema.get("type", [])
    allowed = [names] if isinstance(names, str) else names
    if allowed and not any(_is(value, name) for name in allowed):
        yield f"{path}: {value!r} is not of type {names}"
        return
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{path}: {value!r} is not like {schema['pattern']}"
    yield from _parts(value, schema, known, path)


def _parts(value: Any, schema: Mapping[str, Any], known: Mapping[str, Any], path: str) -> Iterator[str]:
    """Everything wrong in what is in it."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from mistakes(item, schema.get("items", {}), known, f"{path}[{i}]")
    if isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
        for key, item in value.items():
            yield from mistakes(item, schema["additionalProperties"], known, f"{path}.{key}")
    if isinstance(value, dict) and "properties" in schema:
        for key in schema.get("required", []):
            if key not in value:
                yield f"{path}.{key} is missing"
        for key, item in value.items():
            if key not in schema["properties"]:
                yield f"{path}.{key} is not described"
            else:
                yield from mistakes(item, schema["properties"][key], known, f"{path}.{key}")


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, TYPES[name])
