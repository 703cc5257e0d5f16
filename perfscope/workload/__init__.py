"""What is measured: a workload, its step, and how the step is taken apart."""

from perfscope.workload.workload import Workload

__all__ = ["Workload"]
