"""Kinds of records besides the breakdown: one file each, see perfscope.record.kinds. Standard library only."""
