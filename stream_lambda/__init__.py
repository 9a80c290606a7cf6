"""The Lambda behind the stream of the `channels` table.

It needs only boto3 and the standard library.
"""
