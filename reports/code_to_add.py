"""What to change in the user's code: the lines, and the patch for `git apply` where the source is known."""

from __future__ import annotations

from perfscope.sections import Item, code_html, escape

TITLE = "The code to add"
ORDER = 16
KINDS = ("fix",)


def not_written(run) -> str:
    """Which cures are kept but not in the patch; "" if all are."""
    missing = run.extra.get("not_patched") or []
    return f"not in the patch, add by hand: {', '.join(map(str, missing))}" if run.patch and missing else ""


def text(run) -> list:
    """The patch where there is one, else the lines to add."""
    said = [Item("the change of your own file, for git apply", (), run.patch)] if run.patch else []
    said += [Item("the lines to add", (), run.code)] if run.code and (not run.patch or not_written(run)) else []
    return [*said, *filter(None, [not_written(run)])]


def render(run) -> str:
    """Both, each with a button that copies it."""
    patch = f"<h3>As a patch: git apply fix.diff</h3>{code_html(run.patch)}" if run.patch else ""
    lines = f"<h3>The lines</h3>{code_html(run.code)}" if run.code else ""
    return patch + (f"<p>{escape(not_written(run))}</p>" if not_written(run) else "") + lines
