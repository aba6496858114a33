"""The embedded engine as one with a policy: it refuses some texts for good, so that there are dead letters with a true reason.

python -m chaos.engine PORT
"""

import json
import sys
import zlib

import uvicorn
from starlette.requests import Request
from starlette.responses import Response

from starsearch.embedded.engine import EmbeddedEngine
from starsearch.settings import read_settings

REFUSED_EACH = 40  # one in so many titles
REFUSAL = {
    "error": {"message": "this text is against the policy", "type": "invalid_request_error", "param": None, "code": "content_filter"}
}


def refused(prompt: str) -> bool:
    """Whether every engine refuses this prompt, however short it is cut: by the item's title, which is its second line."""
    return zlib.crc32("".join(prompt.splitlines()[1:2]).encode()) % REFUSED_EACH == 0


class Engine(EmbeddedEngine):
    """Counts what it refuses apart: that is no answer."""

    async def chat(self, request: Request) -> Response:
        messages = json.loads(await request.body())["messages"]
        if refused(messages[-1]["content"]):
            self.requests["refused"] += 1
            return Response(json.dumps(REFUSAL), status_code=400, media_type="application/json")
        return await super().chat(request)


def main(port: int) -> None:
    uvicorn.run(Engine(read_settings().home / "cache").app, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main(int(sys.argv[1]))
