"""② One client: its connection, and what each part of it does."""
