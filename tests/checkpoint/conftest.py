"""Fixtures of the checkpoint tests."""

from store_support import memory_dir as memory_dir
