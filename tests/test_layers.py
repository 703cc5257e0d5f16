"""The import rule and the habits of DESIGN sections 2 and 6, by reading the source; what importing pulls in, in new processes."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import perfscope
from perfscope import registry
from perfscope.cli import COMMANDS

ROOT = registry.PACKAGE.parent
STDLIB = sys.stdlib_module_names

#: Module -> the only things outside the standard library that it may import, at the top of the file or inside functions.
STANDARD_ONLY = {"errors", "record", "warned", "registry", "options", "variants", "measure.stats", "measure.scaling", "measure.digits", "measure.attribution", "facts", "sections",
                 "comparable", "compare", "compare_text", "report", "records", "records.speedrun", "records.diagnose", "records.fix", "measure.runs", "speedruns.words", "tricks", "finding", "treatment",
                 "catalogue", "docs"}
FOR_SECTIONS = {"perfscope.record", "perfscope.sections", "perfscope.facts", "perfscope.report", "perfscope.errors",
                "perfscope.measure.stats", "perfscope.measure.digits", "perfscope.speedruns.words", "perfscope.finding", "perfscope.treatment",
                "perfscope.compare_text"}
VERBS = ("breakdown", "compare", "diagnose", "fix", "report", "selfcheck", "speedrun")
HELPERS = {"__init__", "options", "output", "progress"}       # files of perfscope/cli that are no command


def source(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_path(name: str) -> Path:
    path = registry.PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Every module that is imported anywhere in it, with `from perfscope import facts` as perfscope.facts."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module"
            for a in node.names:
                whole = f"{node.module}.{a.name}"
                inside = whole.startswith("perfscope.") and module_path(whole.removeprefix("perfscope.")).exists()
                found.add(whole if inside else node.module)
    return found


def top_level_imports(tree: ast.Module) -> set[str]:
    return imports(ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], []))


def foreign(found: set[str]) -> set[str]:
    """The imports that are neither the standard library's nor perfscope's own."""
    return {f for f in found if f.split(".")[0] not in STDLIB and f.split(".")[0] not in ("perfscope", "__future__")}


def own_files() -> list[Path]:
    return sorted([*registry.PACKAGE.rglob("*.py"), *registry.folder("reports").glob("*.py")])


@pytest.mark.parametrize("name", sorted(STANDARD_ONLY))
def test_standard_library_only(name):
    """Also what they import of perfscope is: so a laptop without torch can read, report and compare."""
    found = imports(source(module_path(name)))
    assert foreign(found) == set()
    own = {f.removeprefix("perfscope.") for f in found if f.startswith("perfscope.")}
    assert own <= STANDARD_ONLY


@pytest.mark.parametrize("name", registry.names("reports"))
def test_a_section_sees_only_the_record_and_plotly(name):
    tree = source(registry.folder("reports") / f"{name}.py")
    assert {f.split(".")[0] for f in foreign(imports(tree))} <= {"plotly"}
    assert foreign(top_level_imports(tree)) == set(), "plotly is imported where it is used"
    assert {f for f in imports(tree) if f.startswith("perfscope")} <= FOR_SECTIONS


@pytest.mark.parametrize("kind", ["models", "recipes", "reports"])
def test_plug_ins_never_import_each_other(kind):
    names = registry.names(kind)
    for name in names:
        for found in imports(source(registry.folder(kind) / f"{name}.py")):
            words = found.split(".")
            assert not (words[0] == kind or words[:2] == ["perfscope", kind]), f"{kind}/{name}.py imports {found}"
            assert len(words) > 1 or found not in names or found in STDLIB


@pytest.mark.parametrize("path", own_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_habits(path):
    """Nobody but the command line prints or ends the program; everything public is documented; nothing is imported by name."""
    tree, inside_cli = source(path), path.is_relative_to(registry.PACKAGE / "cli")
    assert ast.get_docstring(tree) or not tree.body, "a file says what it gives"
    is_program = any(isinstance(n, ast.If) and "__name__" in ast.dump(n.test) for n in tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if not inside_cli:
                assert called not in ("print", "sys.stdout.write", "sys.stderr.write", "pprint"), f"line {node.lineno} prints"
            if not is_program:
                assert called not in ("sys.exit", "exit", "quit", "os._exit"), f"line {node.lineno} ends the program"
    interface = ("render", "text", "workload") if path.parent.name in ("reports", "models") else ("main", "run") if is_program else ()
    public = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
    assert [n.name for n in public if not ast.get_docstring(n) and n.name not in interface] == [], "without a docstring"
    if not inside_cli:
        assert not [i for i in imports(tree) if i.startswith("perfscope.cli")] or path.name == "__main__.py"
    assert not any(len(line) > 160 for line in path.read_text().splitlines()), "lines fit a screen"


@pytest.mark.parametrize("verb", VERBS)
def test_the_verbs_say_what_they_do_and_never_ask(verb):
    tree = source(module_path(verb))
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in ("print", "input")]
    assert not {"typer", "rich"} & {f.split(".")[0] for f in imports(tree)}
    assert not [f for f in imports(tree) if "EXIT_" in f]
    assert inspect.getdoc(getattr(__import__(f"perfscope.{verb}", fromlist=["x"]), verb))


def test_every_file_of_the_command_line_is_a_command_or_a_helper():
    files = {p.stem for p in (registry.PACKAGE / "cli").glob("*.py")}
    assert files == set(COMMANDS) | HELPERS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name):
    import typer

    from perfscope.cli import app

    command = typer.main.get_command(app()).commands[name]
    assert command.help and command.help.strip()
    without = [p.name for p in command.params if not getattr(p, "help", "")]
    assert without == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name):
    assert f"perfscope {name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_exports():
    for name in perfscope.__all__:
        assert getattr(perfscope, name).__module__.startswith("perfscope"), name
        assert name in dir(perfscope)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        perfscope.nothing


def test_a_verb_stays_a_function_after_its_module_was_imported():
    import perfscope.breakdown                  # noqa: F401
    import perfscope.compare                    # noqa: F401
    import perfscope.report                     # noqa: F401

    assert all(inspect.isfunction(getattr(perfscope, verb)) for verb in ("breakdown", "compare", "report"))
    from perfscope.breakdown import breakdown
    assert perfscope.breakdown is breakdown


#: What is run -> what must not be imported by it.
LIGHT = {
    "import perfscope": ("torch", "plotly", "rich", "typer", "numpy"),
    "from perfscope.cli import main; assert main(['--help']) == 0": ("torch", "plotly", "rich", "numpy"),
    "from perfscope.cli import main; assert main(['breakdown', '--help']) == 0": ("torch", "plotly", "rich", "numpy"),
    "from perfscope.cli import main; assert main(['breakdown', '--dtype', 'fp8']) == 2": ("torch", "plotly", "rich", "numpy"),
    "from perfscope.cli import main; assert main(['diagnose', '--help']) == 0": ("torch", "plotly", "rich", "numpy"),
    "from perfscope.cli import main; assert main(['fix', '--dtype', 'fp8']) == 2": ("torch", "plotly", "rich", "numpy"),
    "from perfscope.cli import main; assert main(['list', 'probes']) == 0": ("torch", "plotly", "rich", "numpy"),
    "import perfscope; perfscope.load, perfscope.compare, perfscope.report": ("torch", "plotly", "rich", "numpy"),
}


@pytest.mark.parametrize("code", LIGHT)
def test_starting_is_light(code):
    program = f"{code}\nimport sys\nprint([m for m in {LIGHT[code]!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "[]", done.stderr
