"""Nodes over memory to load."""

from tests.unit.served import quiet, secured, served

__all__ = ["quiet", "secured", "served"]
