"""What may be set, and where it is read from."""
