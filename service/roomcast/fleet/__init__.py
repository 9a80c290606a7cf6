"""What nodes know of each other: leases, who is connected where, orders."""
