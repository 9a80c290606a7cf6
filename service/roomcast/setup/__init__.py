"""How a deployment is set up: what is read of it, and what that means for its nodes."""
