"""The command line: one file per command, found by its name; errors and exit codes in one place, here.

A command file has a function `command` whose signature is its options and whose docstring is its help. It parses, calls
a verb and prints; torch is imported inside the commands that need it, so `perfscope --help` is instant.

Exit codes: 0 done, 1 a regression was asked about and found, 2 usage, 3 environment, 4 not measured well enough,
70 a bug in perfscope, 130 interrupted.
"""

import errno
import os
import sys
import tempfile
import traceback

from perfscope.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_USAGE, PerfscopeError

COMMANDS = ("breakdown", "report", "compare", "trace", "env", "selfcheck", "list")
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
            application.add_typer(module.application, name=name)
        else:
            application.command(name)(module.command)
    return application


def main(argv: list[str] | None = None) -> int:
    """Runs one command and gives its exit code. Every error is one message with the next step, never a stack trace."""
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
    except wrong_usage as e:
        context = getattr(e, "ctx", None)
        complain(e.format_message(), f"See {context.command_path if context else 'perfscope'} --help")
        return EXIT_USAGE
    except KeyboardInterrupt:
        complain("interrupted before anything was measured")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            complain(f"cannot write{f' {e.filename}' if e.filename else ''}: {e.strerror}", "Give another folder with --out, or make room on the disk.")
            return EXIT_ENVIRONMENT
        return _bug(e)
    except Exception as e:
        return _bug(e)


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
