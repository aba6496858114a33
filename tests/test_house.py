"""The house stays in order: short functions, one direction of reading, nothing of this machine in the lock file."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock")
PACKAGES = ("flows", "tasks", "starsearch")
OF_PREFECT = {
    "Work pool … not found", "Unable to create Kubernetes job … exceeded quota", "Execution was cancelled by the runtime environment",
    "Concurrency lease renewal failed",
}  # fmt: skip
FILLED_IN = r"…|\b(?:0|60|digest/shard|starsearch_reader|missing)\b"


def functions():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1


def test_functions_are_short():
    lengths = dict(functions())
    assert len(lengths) > 200
    assert sum(length < 50 for length in lengths.values()) / len(lengths) >= 0.95


@pytest.mark.parametrize("name", LOCKS)
def test_lock_file_pins_every_package_by_hash_and_names_no_host(name):
    text = (ROOT / name).read_text()
    packages = re.findall(r"^[a-z0-9][\w.-]*==", text, re.MULTILINE)
    assert len(packages) > 100
    assert len(re.findall(r"^[a-z0-9][^\n]*\\\n    --hash=sha256:", text, re.MULTILINE)) == len(packages)
    assert "://" not in text
    assert not re.search(r"^(torch|sentence-transformers)==", text, re.MULTILINE)


def test_every_step_of_the_architecture_page_exists():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    steps = re.findall(r"^\| \d+ \w+ \|([^|]+)\|", text, re.MULTILINE)
    assert len(steps) > 10
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "starsearch").rglob("*.py"))
    for name in re.findall(r"`([\w./]+)`", " ".join(steps)):
        if name.endswith((".sql", ".graphql")):
            assert list((ROOT / "starsearch").rglob(Path(name).name)), name
        else:
            assert re.search(rf"(def|class) {name.rsplit('.', 1)[1]}\b", sources), name


def said() -> str:
    """Every text in our sources, one a line."""
    found = []
    for path in (path for package in (*PACKAGES, "deployments") for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("…".join(part.value for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_message_that_the_operations_page_quotes_is_said():
    """Its words between what is filled in."""
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    rows = re.sub("`[^`]*`", "", "\n".join(line for line in page.splitlines() if line.startswith("|")))
    quoted = set(re.findall(r'"([^"]+)"', rows)) - OF_PREFECT
    assert len(quoted) > 30
    parts = {part.strip() for message in quoted for part in re.split(FILLED_IN, message)}
    text = said()
    assert {part for part in parts if part not in text} == set()


def section(title: str) -> str:
    """Of the operations page, up to the next one."""
    return (ROOT / "docs" / "operations.md").read_text("utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_alert_has_its_row_on_the_operations_page():
    manifests = "\n".join(path.read_text("utf-8") for path in (ROOT / "k8s").rglob("*.yaml"))
    alerts = re.findall(r"^ *- alert: (\w+)", manifests, re.MULTILINE)
    assert len(alerts) > 5
    assert re.findall(r"^\| ([A-Z]\w+) \|", section("Alerts"), re.MULTILINE) == alerts


def reasons():
    """Why an item may become a dead letter, as the sources name it: where a digest or a fetch fails. Whatever GitHub itself says has no name here."""
    for path in (ROOT / "starsearch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
            if name == "DigestFailed" or (name == "Failed" and path.name == "batches.py"):
                yield from named(node.args[0])
            elif name == "FetchFailure":
                yield from named(node.args[1])
            elif isinstance(node, ast.ImportFrom) and node.module == "starsearch.errors" and path.name == "batches.py":
                yield from ({alias.name for alias in node.names} - {"StarsearchError"})  # these by the names of their classes


def named(node):
    match node:
        case ast.Constant(str(text)):
            yield text
        case ast.JoinedStr([ast.Constant(text), *_]):  # HTTP, and its status
            yield text.strip()
        case ast.BoolOp():
            yield from (name for value in node.values for name in named(value))
        case ast.Attribute(attr="type" | "reason" | "__name__"):
            pass
        case _:
            raise AssertionError(f"a reason that cannot be read: {ast.dump(node)}")


def test_every_reason_of_a_dead_letter_has_its_row_on_the_operations_page():
    found = set(reasons())
    assert {"timeout", "HTTP", "rejected", "QueryTooHeavy", "error"} < found
    rows = [row.split("|")[2] for row in section("Dead letters, by reason").splitlines() if row.startswith("| ")]
    explained = {word for row in rows for words in re.findall(r"\*([^*]+)\*", row) for word in (words, words.split(" ")[0])}
    assert found - explained == set()


def test_what_runs_is_what_was_tested():
    """Every version of the run-time lock stands in the other one."""
    run, tested = (set(re.findall(r"^[a-z0-9][\w.-]*==\S+", (ROOT / name).read_text(), re.MULTILINE)) for name in LOCKS)
    assert run < tested
