"""① The Centrifuge protocol: frames to commands, replies and pushes to frames, in JSON and
Protobuf; codes and channel names.
"""
