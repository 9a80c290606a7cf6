"""Verifies tokens: keys, signatures and claims."""
