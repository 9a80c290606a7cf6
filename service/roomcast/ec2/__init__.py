"""The life cycle of an instance in an Auto Scaling group. Optional."""
