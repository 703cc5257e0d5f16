"""perfscope inside TensorBoard: a plugin that shows reports and trace pages, offline, without torch (plugin.py)."""
