"""Presence: the members of a channel over all nodes."""
