"""`doctor` on a real Prefect server that asks for its password: the deployment, work pool and worker that shards need."""

import pytest

from starsearch import doctor
from starsearch.settings import Settings

pytestmark = pytest.mark.flows
LOGIN = "admin:a pass:word"


@pytest.fixture(scope="module")
def api_url():
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_SERVER_API_AUTH_STRING, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    import flows  # noqa: F401  its defaults must be set before Prefect is imported

    login = {PREFECT_SERVER_API_AUTH_STRING: LOGIN, PREFECT_API_AUTH_STRING: LOGIN}
    with temporary_settings(login), prefect_test_harness(server_startup_timeout=180), temporary_settings(login):
        yield PREFECT_API_URL.value()


async def asked(api_url, login=LOGIN, **values):
    login = {"PREFECT_API_AUTH_STRING": login} if login else {}
    found = await doctor._prefect(Settings(_env_file=None, PREFECT_API_URL=api_url, **login, **values))
    return found.level, found.message.removeprefix(f"{api_url}: ")


@pytest.mark.parametrize("login", [None, "admin:wrong", "admin"])
@pytest.mark.parametrize(("dispatch", "level"), [("local", "warning"), ("deployment", "error")])
async def test_a_wrong_password_is_found(api_url, login, dispatch, level):
    """Its health page answers all the same."""
    found = await asked(api_url, login, dispatch=dispatch)
    assert found[0] == level
    assert found[1].startswith("it refuses the password: correct PREFECT_API_AUTH_STRING")


async def test_what_shards_need_is_found_missing_one_after_the_other(api_url):
    from prefect import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate

    from flows.digest import digest

    assert await asked(api_url) == ("ok", api_url)
    assert await asked(api_url, dispatch="deployment") == (
        "error",
        "the deployment digest/shard is missing: `make deploy`, or `prefect deploy --all`",
    )
    async with get_client() as client:
        pool = await client.create_work_pool(WorkPoolCreate(name="starsearch-shards", type="process"))
        await client.create_deployment(await client.create_flow(digest), name="shard", work_pool_name=pool.name)
        level, message = await asked(api_url, dispatch="deployment")
        assert (level, message[:22]) == ("error", "no worker polls the wo")
        assert "prefect worker start --pool starsearch-shards" in message
        await client.send_worker_heartbeat(pool.name, "one")
        assert await asked(api_url, dispatch="deployment") == ("ok", f"{api_url}, digest/shard can be started")
        await client.update_work_pool(pool.name, WorkPoolUpdate(is_paused=True))
        assert "is paused: `prefect work-pool resume starsearch-shards`" in (await asked(api_url, dispatch="deployment"))[1]
        await client.delete_work_pool(pool.name)
        assert "the work pool of digest/shard is gone" in (await asked(api_url, dispatch="deployment"))[1]
