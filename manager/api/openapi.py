# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI description: made of the routes (:mod:`manager.api.routes`), and of the types of what they take and
answer. Nothing of it is written by hand."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from lb.rows.row import Row
from lb.rows.top import TopBackend, TopMux, TopService
from manager.api.answers import Error
from manager.api.routes import ROUTES, ApiRoute

Schema = dict[str, Any]

_REF = "#/components/schemas/"


def describe(version: str) -> Schema:
    """The OpenAPI 3.1 document."""
    paths: dict[str, Schema] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "vipmux manager", "version": version, "license": {"name": "Apache-2.0"}},
        "security": [{"certificate": []}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"certificate": {"type": "mutualTLS"}, "token": {"type": "http", "scheme": "bearer"}},
        },
    }


def schema_name(row_type: type) -> str:
    """Rows go by the name of what they are rows of."""
    return row_type.__name__.removesuffix("Row")


def _schemas() -> tuple[dict[Any, Schema], dict[str, Schema]]:
    """Of each type that a route takes or answers; and those that these refer to, by name."""
    types = [found for route in ROUTES for found in (route.body, route.answer) if found is not None]
    types = [*dict.fromkeys([*types, Error, TopService, TopBackend, TopMux])]
    found, named = msgspec.json.schema_components(types, ref_template=f"{_REF}{{name}}")
    return dict(zip(types, map(_renamed, found), strict=True)), {
        name.removesuffix("Row"): _whole(_renamed(schema)) for name, schema in named.items()
    }


def _renamed(schema: Any) -> Any:
    """References and titles without the ending that the types have here; no titles where they say no more."""
    if isinstance(schema, list):
        return [_renamed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _renamed(item) for key, item in schema.items() if key != "title" or not isinstance(item, str)}
    if isinstance(reference := found.get("$ref"), str):
        found["$ref"] = reference.removesuffix("Row")
    return found


def _whole(schema: Schema) -> Schema:
    """A default is for readers of older versions' answers: what is answered has all of its keys. Those that may be
    missing have none."""
    properties = schema.get("properties", {})
    always = {key for key, item in properties.items() if "default" in item} | set(schema.get("required", ()))
    kept = {key: {name: part for name, part in item.items() if name != "default"} for key, item in properties.items()}
    return {**schema, "properties": kept, "required": [key for key in properties if key in always]}


#: By type, and by name.
BY_TYPE, SCHEMAS = _schemas()


def _operation(route: ApiRoute) -> Schema:
    error = {"description": "what is wrong, all of it", "content": _content(Error)}
    names = re.findall(r"{(\w+)}", route.path)
    query = {name: found.schema() for name, found in route.query.items()}
    if route.files and route.body is not None:
        query |= _beside_file(route.body)
    operation: Schema = {
        "operationId": route.operation,
        "summary": route.summary,
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names),
            *({"name": name, "in": "query", "schema": schema} for name, schema in query.items()),
        ],
        "responses": {
            "101" if route.operation == "stream" else "200": {
                "description": "done",
                "content": _content(route.answer, files=route.files and route.body is None)
                | ({"text/plain": {"schema": {"type": "string"}}} if "as" in route.query and not route.files else {}),
            },
            "default": error,
        },
    }
    if route.body is not None:
        operation["requestBody"] = {"required": route.body_needed, "content": _content(route.body, files=route.files)}
    if route.public:
        operation["security"] = []
    return operation


def _content(found: Any, *, files: bool = False) -> Schema:
    schema = {"type": "object"} if found is None else BY_TYPE[found]
    text = {"application/toml": {"schema": {"type": "string"}}} if files else {}
    return {"application/json": {"schema": schema}} | text


def _beside_file(body: type[Row]) -> dict[str, Schema]:
    """What is in the query where the body is a file."""
    keys = SCHEMAS[schema_name(body)]["properties"]
    return {
        key: {**schema, "description": "with a file, what the body's key is in JSON"}
        for key, schema in keys.items()
        if key not in ("services", "to")
    }
