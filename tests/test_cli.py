"""The command as a person or a script uses it: exit codes, clean JSON, messages that say what to do."""

import json
import re
import subprocess
import sys

import pytest

COMMANDS = ("doctor", "migrate", "ingest", "crawl", "digest", "search", "status", "explain", "evaluate", "engine", "reprocess", "versions")


@pytest.fixture
def starsearch(environment):
    def run(*arguments, stdin=None, **extra):
        command = [sys.executable, "-m", "starsearch.cli", *map(str, arguments)]
        return subprocess.run(command, env=environment | extra, input=stdin, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_help_names_every_command(starsearch):
    text = starsearch("--help").stdout
    assert all(command in text for command in COMMANDS)


def test_no_command_imports_prefect(environment):
    script = (
        "import sys, starsearch.cli, starsearch.pipeline, starsearch.engines, starsearch.doctor, starsearch.evaluate, starsearch.audit\n"
        "sys.exit('prefect' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0


def test_a_key_is_all_that_stands_on_stdout(starsearch):
    """The overlays' READMEs take it from there."""
    made = starsearch("keys", "create", "me")
    assert re.fullmatch(r"starsearch_[\w-]{43}\n", made.stdout), made.stderr


def test_ingest_search_status_explain(starsearch, row, jsonl):
    path = jsonl(
        row(1, title="Playback stops with the screen off", body="The system kills the service when the phone is locked."),
        row(2, title="Wrong totals", body="The sum is doubled when the clocks go back."),
        "{broken",
    )
    done = starsearch("ingest", path, "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["items"], counts["inserted"], counts["embedded"], counts["rejected"], counts["llm_requests"]) == (2, 2, 2, 1, 2)
    assert f"{path.name}:3: not JSON" in done.stderr

    again = json.loads(starsearch("ingest", path, "--json").stdout)
    assert (again["inserted"], again["unchanged"], again["llm_requests"]) == (0, 2, 0)

    found = json.loads(starsearch("search", "music ends once the display sleeps", "--json").stdout)
    assert found["hits"][0]["number"] == 1
    assert set(found) == {"query", "mode", "index_version", "hits"}

    status = json.loads(starsearch("status", "--json").stdout)
    assert status["complete"] is True
    assert (status["known"], status["stored"], status["summarized"], status["embedded"], status["pending"]) == (2, 2, 2, 2, 0)
    assert starsearch("status", "--check").returncode == 0

    explained = json.loads(starsearch("explain", "quillcap/marlframe#1", "--json").stdout)
    assert explained["summary_model"] == "embedded-extractive-v1"
    assert explained["prompt_version"] == "v2"
    assert explained["digest_is_current"] is True
    assert explained["index_version"] == found["index_version"]


def test_versions_are_listed_and_what_is_missing_for_a_swap_is_said(starsearch, row, jsonl):
    starsearch("ingest", jsonl(row(1)))
    (version,) = json.loads(starsearch("versions", "list", "--json").stdout)
    assert (version["status"], version["digests"], version["dimensions"]) == ("active", 1, 384)
    for command, message in [(["reprocess"], "serves already"), (["versions", "activate"], "starsearch reprocess")]:
        done = starsearch(*command)
        assert done.returncode == 3
        assert message in done.stderr


def test_standard_input_and_no_digest(starsearch, row):
    done = starsearch("ingest", "-", "--no-digest", "--json", stdin=json.dumps(row(1)) + "\n")
    assert json.loads(done.stdout)["inserted"] == 1
    status = starsearch("status", "--check")
    assert status.returncode == 1
    assert "not digested yet" in status.stdout


def test_terminal_control_characters_are_not_obeyed(starsearch, row, jsonl):
    starsearch("ingest", jsonl(row(1, title="evil \x1b]0;owned\x07 \x1b[31m title", body="[bold]markup[/bold] \x1b[2J stays text")))
    shown = starsearch("search", "evil title").stdout
    assert "\x1b" not in shown
    assert "[bold]markup[/bold]" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ingest", "no/such/file.jsonl"], "is not a file"),
        (["crawl", "--repo", "not a repository"], "owner/name"),
        (["search", " "], "empty"),
        (["search", "x", "--mode", "magic"], "magic"),
        (["search", "x", "--limit", "0"], "greater than"),
        (["search", "x", "--since", "soon"], "soon"),
        (["explain", "not a url"], "owner/name#number"),
        (["status", "--check", "--max-lag", "soon"], "2h"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_exits_2_and_names_what_is_wrong(starsearch, arguments, message):
    done = starsearch(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"STARSEARCH_DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/x"}, "no PostgreSQL at 127.0.0.1:1/x"),  # pragma: allowlist secret
        ({"STARSEARCH_DATABASE_URL": "nonsense:"}, "STARSEARCH_DATABASE_URL"),
        ({"STARSEARCH_LLM_BASE_URL": "http://127.0.0.1:1/v1"}, "STARSEARCH_LLM_BASE_URL"),
        ({"STARSEARCH_LLM_MODEL": "gpt-9"}, "serves embedded-extractive-v1"),
        ({"STARSEARCH_EMBEDDING_MODEL": "ada"}, "STARSEARCH_EMBEDDING_MODEL"),
        ({"STARSEARCH_EMBEDDING_DIMENSIONS": "768"}, "384 dimensions"),
        ({"STARSEARCH_EMBEDDING_DIMENSIONS": "many"}, "STARSEARCH_EMBEDDING_DIMENSIONS"),
        ({"STARSEARCH_LLM_BASE_URL": "localhost"}, "http://"),
    ],
)
def test_missing_precondition_exits_3_and_says_what_to_do(starsearch, row, jsonl, extra, message):
    done = starsearch("ingest", jsonl(row(1)), **extra)
    assert done.returncode == 3, done.stderr
    assert message in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_search_before_anything_is_stored_says_what_to_do(starsearch):
    done = starsearch("search", "anything")
    assert done.returncode == 3
    assert "ingest" in done.stderr


def test_changed_engine_settings_leave_the_version_that_serves_and_say_so(starsearch, row, jsonl, environment):
    starsearch("ingest", jsonl(row(1)))
    change = "import psycopg, os; c = psycopg.connect(os.environ['STARSEARCH_DATABASE_URL'], autocommit=True); "
    change += "c.execute('ALTER TABLE index_version DISABLE TRIGGER USER'); "
    change += "c.execute(\"UPDATE index_version SET prompt_version = 'v0', fingerprint = 'other'\")"
    subprocess.run([sys.executable, "-c", change], env=environment, check=True)
    done = starsearch("digest")
    assert done.returncode == 0
    assert "which serves: see `reprocess`" in done.stderr


def test_the_short_name_of_an_item_is_of_the_configured_host(starsearch, row, jsonl):
    """An Enterprise Server's items are found, and removed, by owner/name#number as github.com's are."""
    starsearch("ingest", jsonl(*(row(n, host="git.example") for n in (1, 2))))
    item, ours = "quillcap/marlframe#1", {"STARSEARCH_GITHUB_HOST": "git.example"}
    assert starsearch("explain", item).returncode == 1
    assert starsearch("explain", item, **ours).returncode == 0
    assert [hit["number"] for hit in json.loads(starsearch("search", "--like", item, "--json", **ours).stdout)["hits"]] == [2]
    assert json.loads(starsearch("purge", "--item", item, "--json").stdout)["items"] == 0
    assert json.loads(starsearch("purge", "--item", item, "--json", **ours).stdout)["items"] == 1


def test_explain_of_what_is_not_stored_fails(starsearch):
    done = starsearch("explain", "https://github.com/no/such/issues/1")
    assert done.returncode == 1
    assert "not stored" in done.stderr


def test_crawl_without_an_answer_says_so(starsearch):
    done = starsearch("crawl", "--repo", "a/b", "--json", STARSEARCH_GITHUB_REST_URL="http://127.0.0.1:1")
    assert done.returncode == 3
    assert "does not answer" in done.stderr


def test_doctor_reports_each_precondition(starsearch):
    starsearch("migrate")
    done = starsearch("doctor", "--json", STARSEARCH_GITHUB_REST_URL="http://127.0.0.1:1")
    levels = {check["name"]: check["level"] for check in json.loads(done.stdout)}
    assert levels == {"database": "ok", "summaries": "ok", "embeddings": "ok", "GitHub": "warning", "Prefect": "ok"}
    assert done.returncode == 0
    broken = starsearch("doctor", STARSEARCH_LLM_BASE_URL="http://127.0.0.1:1/v1", STARSEARCH_GITHUB_REST_URL="http://127.0.0.1:1")
    assert broken.returncode == 3
    assert "STARSEARCH_LLM_BASE_URL" in broken.stdout


def test_evaluate_measures_three_modes_and_honours_also_ok(starsearch, row, jsonl):
    starsearch(
        "ingest", jsonl(*(row(n, title=f"Topic {word}", body=f"All about {word}.") for n, word in enumerate(["x", "tea", "rail"], 1)))
    )
    url = row(2)["url"]
    questions = jsonl(
        {"question": "tea", "url": url}, {"question": "rail", "url": "https://nowhere", "also_ok": [row(3)["url"]]}, name="q.jsonl"
    )
    result = json.loads(starsearch("evaluate", questions, "--json").stdout)
    assert result["questions"] == 2
    assert set(result["modes"]) == {"hybrid", "vector", "text"}
    assert result["modes"]["hybrid"] == {"recall_at_1": 1.0, "recall_at_10": 1.0, "mrr": 1.0}
    assert starsearch("evaluate", jsonl("[]", name="bad.jsonl")).returncode == 1
