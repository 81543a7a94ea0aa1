"""Distributed training of the VGG networks, and an honest look at what they learned."""

__version__ = "0.1.0"
