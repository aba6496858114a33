"""The system on a cluster, once for each file of tests that breaks it in its own ways."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from starsearch.embedded import postgres
from tests.k8s.system import System, running_system


@pytest.fixture(scope="module")
def system(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, home: Path, server: postgres.EmbeddedPostgres
) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("cluster"), home, server, items=request.module.ITEMS) as found:
        yield found
