"""What an account and a region must have before the first deployment, and whether they do."""
