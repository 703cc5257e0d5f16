"""Every error that perfscope raises on purpose, and the exit code of each.

    PerfscopeError                      what happened, why, what to do next
    |-- UsageError           exit 2     the command line or the arguments are wrong
    |   |-- WorkloadError    exit 2     the model, file or callable cannot be used as a workload
    |   |-- RecordError      exit 2     a run.json cannot be read, or two cannot be compared
    |   |-- DataError        exit 2     a data set is not there, or its files are not what they should be
    |   `-- TraceError       exit 2     a profiler trace cannot be read, not even in part
    |-- EnvironmentError_    exit 3     this machine lacks something: a GPU, memory, disk, a package
    `-- PrecisionError       exit 4     measured, but not as well as was asked for

Exit 0 is "done", 1 is "a regression was asked about and found": neither is an error.
"""

EXIT_OK = 0
EXIT_REGRESSION = 1
EXIT_USAGE = 2
EXIT_ENVIRONMENT = 3
EXIT_UNSURE = 4
EXIT_INTERRUPTED = 130


class PerfscopeError(Exception):
    """One clear message and one next step; never shown with a stack trace.

    `message` says what happened and why, `hint` what to do next. `detail` is somebody else's
    text (the traceback of the user's own code, say), shown as theirs and unchanged.
    """

    exit_code = EXIT_USAGE

    def __init__(self, message: str, hint: str = "", detail: str = ""):
        super().__init__(message)
        self.message, self.hint, self.detail = message, hint, detail


class UsageError(PerfscopeError):
    """The command line or the arguments are wrong."""


class WorkloadError(UsageError):
    """The model, file or callable cannot be used as a workload."""


class RecordError(UsageError):
    """A run.json cannot be read, or two cannot be compared."""


class DataError(UsageError):
    """A data set is not there, or its files are not what they should be."""


class TraceError(UsageError):
    """A profiler trace cannot be read, not even in part."""


class EnvironmentError_(PerfscopeError):
    """This machine lacks something: a GPU, memory, disk space, a package."""

    exit_code = EXIT_ENVIRONMENT


class PrecisionError(PerfscopeError):
    """Measured, but not as well as was asked for."""

    exit_code = EXIT_UNSURE
