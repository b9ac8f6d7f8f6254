"""The spec layer: YAML text -> frozen `Spec`, with file and line, all problems at once.

Contains: the dataclasses and what each field allows (model), the rules (rules, constraints), the reading (nodes, fields,
loader), the JSON Schema, the figures of the hardware (hardware) and the shared memory of an attention tile (footprint).
Must not contain: torch, or any choice of how a kernel is written (that is `vashista_gen.plan`).
"""

from vashista_gen.spec.footprint import Tile, attention_tile
from vashista_gen.spec.hardware import Card, Hardware, hardware_of, specs_root
from vashista_gen.spec.loader import load, loads
from vashista_gen.spec.model import (
    AttentionSpec,
    CacheSpec,
    CandidatesSpec,
    CertificateSpec,
    ModelSpec,
    RoutingSpec,
    Source,
    Spec,
)
from vashista_gen.spec.rules import RULES, Rule
from vashista_gen.spec.schema import json_schema, schema_text

__all__ = [
    "RULES",
    "AttentionSpec",
    "CacheSpec",
    "CandidatesSpec",
    "Card",
    "CertificateSpec",
    "Hardware",
    "ModelSpec",
    "RoutingSpec",
    "Rule",
    "Source",
    "Spec",
    "Tile",
    "attention_tile",
    "hardware_of",
    "json_schema",
    "load",
    "loads",
    "schema_text",
    "specs_root",
]
