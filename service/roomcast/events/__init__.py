"""The Lambda that tells back ends what happened, from the streams of two tables.

It needs only boto3 and the standard library.
"""
