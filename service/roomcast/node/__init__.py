"""One node put together, and its health."""
