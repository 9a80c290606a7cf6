"""The Lambda behind the stream of the `channels` table.
Needs boto3 and the standard library only.
"""
