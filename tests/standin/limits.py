"""Who may ask, and how much: tokens, App installations, and their windows by the virtual clock.

https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api
https://docs.github.com/apps/creating-github-apps/authenticating-with-a-github-app/generating-an-installation-access-token-for-a-github-app
"""

from collections.abc import Iterable
from dataclasses import dataclass

import jwt

from tests.standin.notation import iso
from tests.standin.replies import Reply, as_json, message
from tests.standin.world import World

HOUR_SECONDS = 3_600
ANONYMOUS = "anonymous"
TOKENS = ("token-a", "token-b", "token-c")
MOST_JWT_SECONDS = 600


@dataclass
class Window:
    """What one credential may use of one resource until `reset`; the first request opens it."""

    resource: str
    limit: int
    seconds: int
    used: int = 0
    reset: int = 0

    def turn(self, now: int) -> None:
        if now >= self.reset:
            self.used, self.reset = 0, now + self.seconds

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)

    @property
    def exhausted(self) -> bool:
        return self.used >= self.limit

    def headers(self) -> dict[str, str]:
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(self.remaining),
            "x-ratelimit-used": str(self.used),
            "x-ratelimit-reset": str(self.reset),
            "x-ratelimit-resource": self.resource,
        }

    def as_json(self) -> dict[str, int | str]:
        return {"limit": self.limit, "used": self.used, "remaining": self.remaining, "reset": self.reset, "resource": self.resource}


@dataclass
class App:
    public_key: str
    installations: set[str]


class Limits:
    """points: an hour's for each credential; change it before the first request. tokens: of people, valid for ever."""

    def __init__(self, world: World, tokens: Iterable[str] = TOKENS, *, points: int = 5_000) -> None:
        self.world = world
        self.tokens = set(tokens)
        self.points = points
        self.tokens_issued = 0
        self._apps: dict[str, App] = {}
        self._issued: dict[str, tuple[str, int]] = {}  # token: credential, end
        self._windows: dict[tuple[str, str], Window] = {}

    def credential(self, authorization: str) -> str | None:
        """Whose limits a request counts against; None: refused."""
        if not authorization:
            return ANONYMOUS
        token = authorization.partition(" ")[2].strip()
        if token in self.tokens:
            return token
        name, end = self._issued.get(token, ("", 0))
        return name if name and self.world.seconds < end else None

    def window(self, credential: str, resource: str = "graphql") -> Window:
        window = self._windows.get((credential, resource))
        if window is None:
            limit, seconds = self._size(credential, resource)
            window = self._windows[credential, resource] = Window(resource, limit, seconds)
        window.turn(self.world.seconds)
        return window

    def _size(self, credential: str, resource: str) -> tuple[int, int]:
        if resource == "search":
            return (10 if credential == ANONYMOUS else 30), 60
        if credential == ANONYMOUS:
            return (0 if resource == "graphql" else 60), HOUR_SECONDS
        return self.points, HOUR_SECONDS

    def register_app(self, app_id: str, public_key: str, installations: Iterable[str]) -> None:
        """public_key: PEM, of the key that the App signs with."""
        self._apps[str(app_id)] = App(public_key, {str(installation) for installation in installations})

    def revoke_issued(self) -> None:
        """As when somebody suspends the installation: every token that was issued is refused."""
        self._issued.clear()

    def issue(self, installation: str, authorization: str) -> Reply:
        """POST /app/installations/{installation}/access_tokens"""
        claims = self._claims(authorization.partition(" ")[2].strip())
        if isinstance(claims, Reply):
            return claims
        if installation not in self._apps[str(claims["iss"])].installations:
            return message(404, "Not Found")
        self.tokens_issued += 1
        token = f"ghs_standin{installation}n{self.tokens_issued}"
        end = self.world.seconds + HOUR_SECONDS
        self._issued[token] = f"installation {installation}", end
        return as_json(201, {"token": token, "expires_at": iso(end), "permissions": {"metadata": "read"}, "repository_selection": "all"})

    def _claims(self, proof: str) -> dict[str, object] | Reply:
        """The claims of a proof that holds now; else GitHub's refusal."""
        try:
            issuer = str(jwt.decode(proof, options={"verify_signature": False}).get("iss"))
            app = self._apps.get(issuer)
            if app is None:
                return message(404, "Integration not found")
            unchecked = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}  # by the virtual clock, below
            claims = jwt.decode(proof, app.public_key, algorithms=["RS256"], options=unchecked)
        except jwt.PyJWTError:
            return message(401, "A JSON web token could not be decoded")
        now, issued, expires = self.world.seconds, claims.get("iat"), claims.get("exp")
        if not isinstance(issued, int | float) or issued > now:
            return message(401, "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued.")
        if not isinstance(expires, int | float) or expires <= now:
            return message(
                401, "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires."
            )
        if expires > now + MOST_JWT_SECONDS:
            return message(401, "'Expiration time' claim ('exp') is too far in the future.")
        return claims
