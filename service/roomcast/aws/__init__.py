"""The ports over AWS, one file each, through aioboto3."""
