"""The operations page at /admin, and what it asks of the node that serves it."""
