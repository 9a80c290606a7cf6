"""What a deployment costs: the calls to AWS that a load takes, and the bill that they make."""
