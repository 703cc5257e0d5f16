"""The cure as a change of the user's own source: a unified diff for `git apply`.

A probe may have `edit(source) -> list of Edit`: exact replacements in the text, found by reading the syntax tree; an empty
list if it does not find what to change. `patch_for` applies the edits of all cures one after the other, each on the text
that the one before left, checks that the result still parses, and says which cures it could not write down.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Iterator

from perfscope import probing, registry

#: The optimizers of torch.optim that take fused=.
FUSED = ("Adam", "AdamW", "SGD", "Adagrad")


@dataclass(frozen=True)
class Edit:
    """Characters `start` to `end` of the text become `text`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Source:
    """A file of the user's: its text, and the class name of the model that is trained ("" if not known)."""

    text: str
    model: str = ""
    device: str = "cpu"

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def offset(self, line: int, column: int) -> int:
        """The place in the text of a node's line (from 1) and column (in UTF-8 bytes, as ast counts)."""
        lines = self.text.splitlines(keepends=True)
        return sum(map(len, lines[:line - 1])) + len(lines[line - 1].encode()[:column].decode())

    def start(self, node) -> int:
        return self.offset(node.lineno, node.col_offset)

    def end(self, node) -> int:
        return self.offset(node.end_lineno, node.end_col_offset)

    def calls(self, *names: str) -> Iterator[ast.Call]:
        """Calls of functions or classes of these names, whatever module they are taken from."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and _last(node.func) in names:
                yield node


@dataclass(frozen=True)
class Patch:
    """A unified diff ("" if nothing could be written down), its file, and the cures that are not in it."""

    diff: str = ""
    file: str = ""
    missing: tuple[str, ...] = ()


def _last(node) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


# ---------------------------------------------------------------- edits that probes use

def keyword(source: Source, call: ast.Call, name: str, value: str) -> Edit:
    """name=value in a call, added or replaced."""
    for k in call.keywords:
        if k.arg == name:
            return Edit(source.start(k.value), source.end(k.value), value)
    close = source.end(call) - 1
    inside = [*call.args, *(k.value for k in call.keywords)]
    if not inside:
        return Edit(close, close, f"{name}={value}")
    last = max(source.end(n) for n in inside)
    rest = source.text[last:close]
    return Edit(last, last, f", {name}={value}") if "," not in rest else Edit(last + rest.index(",") + 1, last + rest.index(",") + 1, f" {name}={value},")


def optimizer_keyword(source: Source, name: str, value: str, classes=FUSED) -> list[Edit]:
    """name=value for every torch optimizer that is made in the file, functools.partial of one included."""
    found = [keyword(source, call, name, value) for call in source.calls(*classes)]
    found += [keyword(source, call, name, value) for call in source.calls("partial") if call.args and _last(call.args[0]) in classes]
    return sorted(found, key=lambda e: e.start)


def after_imports(source: Source, text: str) -> list[Edit]:
    """`text`, lines of their own, behind the last of the imports at the top of the file; nothing if it is there already."""
    imports = [n for n in source.tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    if not imports or text in source.text:
        return []
    end = source.offset(imports[-1].end_lineno, 0)
    end = source.text.find("\n", end) + 1 or len(source.text)
    return [Edit(end, end, ("" if source.text[end - 1:end] == "\n" else "\n") + text)]


def after_model(source: Source, text: str) -> list[Edit]:
    """`text` behind every place where the model is made: Net() -> Net()<text>."""
    return [Edit(source.end(c), source.end(c), text) for c in source.calls(source.model)] if source.model else []


def around_forward(source: Source, context: str) -> list[Edit]:
    """`with <context>:` around the statements from the first that calls a model up to the one before .backward().

    Every block with a statement `loss.backward()` (or scaler.scale(loss).backward()) is looked at: the statements above it
    that lead to the loss, back to the last one that does not (zero_grad, moving the batch, ...).
    """
    edits = []
    for node in ast.walk(source.tree):
        for block in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if not isinstance(block, list):
                continue
            for i, statement in enumerate(block):
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and _last(statement.value.func) == "backward":
                    lead = _leading(block[:i], statement)
                    if lead:
                        edits.append(_indented(source, lead, context))
    return edits


def _leading(above: list, backward) -> list:
    """The assignments directly above that the loss depends on."""
    wanted = {n.id for n in ast.walk(backward) if isinstance(n, ast.Name)}
    found: list = []
    for statement in reversed(above):
        targets = {n.id for t in getattr(statement, "targets", []) for n in ast.walk(t) if isinstance(n, ast.Name)}
        calls = any(isinstance(n, ast.Call) for n in ast.walk(statement))
        if not isinstance(statement, ast.Assign) or not targets & wanted or not calls:
            break
        if found and not _computes(statement):
            break
        found.insert(0, statement)
        wanted |= {n.id for n in ast.walk(statement.value) if isinstance(n, ast.Name)}
    return found


def _computes(statement) -> bool:
    """Not a mere move of the batch: x = x.to(device), x.cuda()."""
    return not any(isinstance(n, ast.Call) and _last(n.func) in ("to", "cuda", "next", "contiguous") for n in ast.walk(statement.value))


def _indented(source: Source, statements: list, context: str) -> Edit:
    start = source.offset(statements[0].lineno, 0)
    end = source.end(statements[-1])
    indent = " " * statements[0].col_offset
    body = source.text[start:end].splitlines(keepends=True)
    return Edit(start, end, f"{indent}with {context}:\n" + "".join("    " + line if line.strip() else line for line in body))


# ---------------------------------------------------------------- the patch

def rewrite(source: Source, edits: list[Edit]) -> str:
    """The text with the edits made. ValueError if they overlap or the result is no Python."""
    text, last = source.text, len(source.text) + 1
    for e in sorted(edits, key=lambda e: -e.start):
        if e.end > last:
            raise ValueError("two edits of one cure overlap")
        text, last = text[:e.start] + e.text + text[e.end:], e.start
    ast.parse(text)
    return text


def patch_for(model: str, cures, chosen: dict[str, ModuleType], device: str = "cpu") -> Patch:
    """The diff that puts these cures into the file behind `model` ("path/file.py:function", "package.module:function").

    Built-in models and those of other libraries have no file of the user's: every cure is missing then.
    """
    path = source_file(model)
    if path is None:
        return Patch(missing=tuple(cures))
    before = path.read_text(encoding="utf-8")
    text, missing, name = before, [], model_class(model)
    for cure in cures:
        edit = getattr(chosen[cure.partition(probing.SEPARATOR)[0]], "edit", None)
        source = Source(text, name, device)
        edits = edit(source) if edit else []
        if edits:
            try:
                text = rewrite(source, edits)
                continue
            except (ValueError, SyntaxError):
                pass
        missing.append(cure)
    shown = _shown(path)
    lines = difflib.unified_diff(_lines(before), _lines(text), f"a/{shown}", f"b/{shown}")
    return Patch("".join(lines), str(path), tuple(missing))


def _lines(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n\\ No newline at end of file\n"
    return lines


def source_file(model: str) -> Path | None:
    """The user's file behind a model's name; None for built-in ones and other libraries'."""
    head, _, tail = model.partition(":")
    if not tail or head in registry.names("models") or head in ("timm", "torchvision", "hf"):
        return None
    if head.endswith(".py"):
        return Path(head) if Path(head).is_file() else None
    sys.path.insert(0, str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(head)
    except (ImportError, ValueError):
        return None
    finally:
        sys.path.pop(0)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def model_class(model: str) -> str:
    """The name of the class of the model; "" if it cannot be made here."""
    from perfscope.errors import PerfscopeError
    from perfscope.workload.resolve import resolve
    try:
        return type(resolve(model).model).__name__
    except PerfscopeError:
        return ""


def _shown(path: Path) -> str:
    """The path as `git apply` wants it: from the top of its repository, else from the current folder."""
    path = path.resolve()
    done = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=path.parent, capture_output=True, text=True)
    for top in ([Path(done.stdout.strip())] if done.returncode == 0 else []) + [Path.cwd()]:
        if path.is_relative_to(top.resolve()):
            return path.relative_to(top.resolve()).as_posix()
    return path.name
