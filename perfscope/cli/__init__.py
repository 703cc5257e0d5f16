"""The command line: one file per command, found by its name; errors and exit codes in one place, here.

A command file has a function `command` whose signature is its options and whose docstring is its help. It parses, calls
a verb and prints; torch is imported inside the commands that need it, so `perfscope --help` is instant.

Exit codes: 0 done, 1 a regression was asked about and found, 2 usage, 3 environment, 4 not measured well enough,
70 a bug in perfscope, 130 interrupted.
"""

import contextlib
import errno
import functools
import os
import sys
import tempfile
import traceback

from perfscope.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, PerfscopeError

COMMANDS = ("breakdown", "diagnose", "fix", "speedrun", "report", "compare", "trace", "env", "selfcheck", "list", "new")
EXIT_BUG = 70   # sysexits.h, EX_SOFTWARE


def app():
    """The typer application with every command."""
    from importlib import import_module

    import typer

    application = typer.Typer(name="perfscope", add_completion=False, rich_markup_mode=None,
                              pretty_exceptions_enable=False,
                              help="Take a training step apart, find what is slow, fix it, and prove it.")

    @application.callback(invoke_without_command=True)
    def root(context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")):
        if not version and context.invoked_subcommand is None:
            print(context.get_help())
            raise typer.Exit()
        if version:
            import perfscope
            print(f"perfscope {perfscope.__version__}")
            raise typer.Exit()

    for name in COMMANDS:
        module = import_module(f"perfscope.cli.{name}")
        if hasattr(module, "application"):      # a command with commands of its own
            for sub in module.application.registered_commands:
                sub.callback = _stoppable(sub.callback)
            application.add_typer(module.application, name=name)
        else:
            application.command(name)(_stoppable(module.command))
    return application


class _Stopped(Exception):
    """Ctrl-C, a closed pipe or an exit in a command: typer would end the program without a word."""


def _stoppable(command):
    @functools.wraps(command)
    def run(**options):
        try:
            return command(**options)
        except (KeyboardInterrupt, BrokenPipeError, SystemExit) as e:
            raise _Stopped from e
    return run


def main(argv: list[str] | None = None) -> int:
    """Runs one command and gives its exit code. Every error is one message with the next step, never a stack trace."""
    try:
        for stream in (sys.stdout, sys.stderr):     # a name that the terminal's encoding does not have is no reason to fail
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        return _main(argv)
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _closed()


def _main(argv: list[str] | None) -> int:
    import typer

    # typer stands on click, or since 0.2x on a copy of it: the base class is the same by name
    wrong_usage = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        code = app()(args=argv, prog_name="perfscope", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except PerfscopeError as e:
        complain(e.message, e.hint, e.detail)
        return e.exit_code
    except typer.Exit as e:
        return e.exit_code
    except typer.Abort:
        return EXIT_INTERRUPTED
    except _Stopped as e:
        if isinstance(e.__cause__, SystemExit):
            complain(f"the model's code ended the program: sys.exit({e.__cause__.code!r})", "Take that call out of it.")
            return EXIT_USAGE
        raise e.__cause__
    except wrong_usage as e:
        context = getattr(e, "ctx", None)
        complain(e.format_message(), f"See {context.command_path if context else 'perfscope'} --help")
        return EXIT_USAGE
    except BrokenPipeError:
        raise
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            complain(f"cannot write{f' {e.filename}' if e.filename else ''}: {e.strerror}", "Give another folder with --out, or make room on the disk.")
            return EXIT_ENVIRONMENT
        return _bug(e)
    except Exception as e:
        return _bug(e)


def _closed() -> int:
    """Whoever read the output has enough: what is left goes nowhere, and that is no error."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_OK


def complain(message: str, hint: str = "", detail: str = "") -> None:
    """One error on stderr: what happened, somebody else's text unchanged, what to do next."""
    print(f"perfscope: {message}", file=sys.stderr)
    if detail:
        print("\n".join(f"  | {line}" for line in detail.rstrip().splitlines()), file=sys.stderr)
    if hint:
        print(f"  -> {hint}", file=sys.stderr)


def _bug(error: Exception) -> int:
    """An error that nobody foresaw: one message, and the stack trace in a file that can be sent."""
    where = "(it could not be saved)"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="perfscope-bug-", suffix=".txt", delete=False) as f:
            traceback.print_exception(error, file=f)
            where = f.name
    except OSError:
        pass
    complain(f"this is a bug in perfscope: {type(error).__name__}: {error}", f"Please report it with the details in {where}")
    return EXIT_BUG
