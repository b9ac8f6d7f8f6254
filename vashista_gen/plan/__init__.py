"""Spec -> Plan: structure, tiles and costs; no torch."""

from vashista_gen.plan.plan import Plan, make_plan

__all__ = ["Plan", "make_plan"]
