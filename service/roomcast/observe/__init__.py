"""Reports of a node about itself: logs, counters and CloudWatch metrics."""
