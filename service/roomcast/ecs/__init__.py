"""A node as a task of ECS: who it is, and how long it may take to end. Optional."""
