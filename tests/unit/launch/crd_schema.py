"""The definition of a custom resource as a strict JSON schema: unknown fields are errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RANGES = {"int32": 2**31, "int64": 2**63}
"""Format to the bound of its numbers; JSON schema itself has no formats of numbers."""


def schema_of(definition: Mapping[str, Any], api_version: str) -> dict[str, Any]:
    """Return the strict JSON schema of a CustomResourceDefinition's version, e.g. "ray.io/v1".

    What the API server checks by itself is left to it: `metadata`, and rules in CEL.

    Raises:
        ValueError: the definition is of another resource, or has no such version.
    """
    group, _, version = api_version.partition("/")
    spec = definition["spec"]
    found = {one["name"]: one for one in spec["versions"]}
    if spec["group"] != group or version not in found:
        raise ValueError(f"expected {api_version}, got {spec['group']} with {', '.join(found)}")
    schema = strict(found[version]["schema"]["openAPIV3Schema"])
    schema["properties"] |= {
        "apiVersion": {"const": api_version},
        "kind": {"const": spec["names"]["kind"]},
        "metadata": {"type": "object", "required": ["name"]},
    }
    return schema


def strict(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a structural schema of OpenAPI 3 as JSON schema, closed where the API server prunes.

    It drops what an object's schema does not name, so a misspelt key would be lost in silence;
    `x-kubernetes-preserve-unknown-fields` keeps it.
    """
    kept = ("type", "enum", "pattern", "required", "minimum", "maximum", "minLength", "maxLength",
            "minItems", "maxItems", "minProperties", "maxProperties")  # fmt: skip
    schema: dict[str, Any] = {key: node[key] for key in kept if key in node}
    for combination in ("anyOf", "oneOf", "allOf"):  # they constrain, and name no fields
        if combination in node:
            schema[combination] = [dict(one) for one in node[combination]]
    if "not" in node:
        schema["not"] = dict(node["not"])
    if node.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    if bound := RANGES.get(node.get("format", "")):
        schema = {"minimum": -bound, "maximum": bound - 1, **schema}
    if "items" in node:
        schema["items"] = strict(node["items"])
    if "properties" in node:
        schema["properties"] = {key: strict(one) for key, one in node["properties"].items()}
    values = node.get("additionalProperties")
    if isinstance(values, Mapping):
        schema["additionalProperties"] = strict(values)
    elif values is not True and node.get("type") == "object":
        schema["additionalProperties"] = bool(node.get("x-kubernetes-preserve-unknown-fields"))
    return {"anyOf": [{"type": "null"}, schema]} if node.get("nullable") else schema
