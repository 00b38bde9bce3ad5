"""The rules of the house that no linter knows: sizes, mirrors, plain-data families, clean text."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "nemoalign"
FOLDERS = ("nemoalign", "tests", "benchmarks", "examples")
MAX_LINES = 300
MAX_FUNCTION_LINES = 50

SOURCES = [path for folder in FOLDERS for path in sorted((PROJECT / folder).rglob("*.py"))]
SCRIPTS = [path for folder in FOLDERS for path in sorted((PROJECT / folder).rglob("*.s[bh]*"))]
TOP = [PROJECT / name for name in ("Makefile", "README.md", "pyproject.toml", "constraints.txt")]
TEXTS = [*SOURCES, *SCRIPTS, *(path for path in TOP if path.exists()), PROJECT / ".ci" / "run"]

FORBIDDEN = {
    "an absolute path of one machine": r"(?<![\w.$}])/(?:home|root|Users|work|workspace|scratch)/\w",
    "the host of a package registry": r"\b(?:pypi|pythonhosted|npmjs|crates)\.(?:org|com|io)\b",
    "unfinished work": r"\b(?:TO" "DO|FIX" "ME|X" "XX)\\b|NotImplemented" "Error",
    "a test that is not run": r"mark\.(?:sk" "ip|xf" "ail)\\b|importor" "skip",
    "a muted check without its reason": r"#\s*(?:noqa|type: ignore|pyright: ignore)(?!.*\s(?:-|#)\s\w)",
}
UNSAFE = {
    "unpickling a downloaded file": r"\b(?:torch|pickle)\.load\(|\bpickle\.loads\(",
    "unsafe YAML": r"\byaml\.load\(",
    "extracting by the archive's own names": r"\.extractall\(",
    "a shell that splits names": r"shell=True",
    "code from a model's folder": r"trust_remote_code=True",
}


def name_of(path):
    return str(path.relative_to(PROJECT))


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=name_of)
def test_no_file_is_longer_than_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_function_is_longer_than_50_lines(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, functions) and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long


def test_every_source_file_has_its_mirror_test():
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        mirror = PROJECT / "tests" / inside.with_name(f"test_{inside.name}")
        if path.name not in ("__init__.py", "__main__.py") and not mirror.exists():
            missing.append(name_of(mirror))
    assert not missing


def test_every_test_folder_is_a_package_so_that_two_tests_may_share_a_name():
    folders = {path.parent for path in (PROJECT / "tests").rglob("test_*.py")}
    assert [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*/__init__.py")), ids=name_of)
def test_a_package_says_what_it_is_and_does_nothing(path):
    text = path.read_text(encoding="utf-8")
    body = ast.parse(text).body
    assert len(body) == 1
    assert is_docstring(body[0])
    assert len(text.splitlines()) <= 15


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in sorted((PACKAGE / "families").glob("*.py"))
        if p.stem not in ("__init__", "registry")
    ],
    ids=name_of,
)
def test_a_family_is_data(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    data = (ast.Import, ast.ImportFrom, ast.Assign)
    assert [ast.unparse(node) for node in body[1:] if not isinstance(node, data)] == []
    assert is_docstring(body[0])
    computed = (ast.Lambda, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp, ast.IfExp)
    assert not [node for top in body for node in ast.walk(top) if isinstance(node, computed)]


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_nothing_is_written_that_does_not_belong_here(path):
    assert complaints(path, FORBIDDEN) == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name_of)
def test_no_call_is_made_that_a_hostile_file_could_use(path):
    assert complaints(path, UNSAFE) == []


def test_every_dependency_is_pinned_exactly_and_without_a_local_version():
    pins = dict(
        line.split("==")
        for line in (PROJECT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert [name for name, version in pins.items() if not re.fullmatch(r"[\d.]+\w*", version)] == []
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["gguf"]]
    names = {re.match(r"[\w-]+", requirement).group() for requirement in wanted}
    assert names - set(pins) == set()


def test_continuous_integration_runs_the_two_commands_a_person_types():
    lines = (PROJECT / ".ci" / "run").read_text().splitlines()
    assert [line.split(" <")[0] for line in lines if line.startswith("make")] == [
        "make check",
        "make test",
    ]


def test_every_make_target_says_what_it_does():
    makefile = (PROJECT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split()
    assert [
        name for name in targets if not re.search(rf"^{name}:.*  ## \S", makefile, re.MULTILINE)
    ] == []


def complaints(path, patterns):
    text = path.read_text(encoding="utf-8")
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {what}: {match.group().strip()}"
        for what, pattern in patterns.items()
        for match in re.finditer(pattern, text)
    ]


def is_docstring(node):
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
