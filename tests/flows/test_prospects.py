"""What a parent makes of Prefect's states of a shard that has not begun."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

pytestmark = pytest.mark.flows


@pytest.mark.parametrize(
    ("kind", "name", "pid", "minutes", "lost"),
    [
        ("SCHEDULED", "Late", None, 10, False),  # no worker yet
        ("PENDING", "Pending", None, 2, False),  # its worker makes the Job now
        ("PENDING", "Pending", None, 4, True),  # its worker was restarted before it had
        ("PENDING", "Submitting", None, 4, True),
        ("PENDING", "Pending", "starsearch:shard-1", 4, False),  # there is a Job and no pod: quota
        ("PENDING", "InfrastructurePending", None, 4, False),  # there is a pod: only the worker's note of its Job was lost
        ("CRASHED", "Crashed", None, 0, True),
    ],
)
def test_a_shard_is_given_up_when_nothing_will_start_it(kind, name, pid, minutes, lost):
    from prefect.client.schemas.objects import FlowRun, State

    from tasks.digesting import _prospect

    state = State(type=kind, name=name, message="said", timestamp=datetime.now(UTC) - timedelta(minutes=minutes))
    prospect = _prospect(FlowRun(flow_id=uuid4(), state=state, infrastructure_pid=pid), state, None)
    assert prospect.lost == lost
    assert name in prospect.said or "its worker" in prospect.said


def test_what_the_log_of_a_waiting_pod_says_is_told():
    from prefect.client.schemas.objects import FlowRun, State

    from tasks.digesting import _prospect

    state = State(type="PENDING", name="InfrastructurePending")
    assert _prospect(FlowRun(flow_id=uuid4(), state=state), state, "Image pull failed").said == "Image pull failed"
