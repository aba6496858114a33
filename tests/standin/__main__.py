"""The stand-in as a process of its own, for benchmarks that measure only the client."""

import argparse
from pathlib import Path

import uvicorn

from tests.standin.documents import schema
from tests.standin.filling import read_texts
from tests.standin.limits import TOKENS
from tests.standin.server import configuration
from tests.standin.service import Service
from tests.standin.world import World


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.standin", description="A stand-in GitHub on loopback.")
    parser.add_argument("--port", type=int, default=8010)
    parser.add_argument("--repositories", type=int, default=200)
    parser.add_argument("--items-each", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stars-csv", type=Path, help="full_name, stars, open_issues: real names, stars and activity")
    parser.add_argument("--items", type=Path, help="JSON Lines of real items, as ../shared/data/items.jsonl.gz")
    parser.add_argument("--texts", type=Path, help="the same file: what is new or edited in an hour has texts of these, under other titles")
    parser.add_argument("--search-index", type=int, default=0, metavar="REPOSITORIES", help="for search: so many more, with stars")
    parser.add_argument("--tokens", default=",".join(TOKENS), help="that are accepted, with commas between")
    parser.add_argument("--points", type=int, default=5_000, help="an hour for each token")
    parser.add_argument("--latency-seconds", type=float, default=0.0)
    parser.add_argument("--tick-seconds", type=float, default=0.0, help="added to the virtual clock by each request")
    arguments = parser.parse_args()
    world = World(tick_seconds=arguments.tick_seconds)
    world.populate(arguments.repositories, items_each=arguments.items_each, seed=arguments.seed, stars_csv=arguments.stars_csv)
    if arguments.items:
        world.fill(arguments.items)
    if arguments.texts:
        world.texts = read_texts(arguments.texts)
    if arguments.search_index:
        world.search_index(arguments.search_index, seed=arguments.seed)
    schema()  # a second; not during the first request
    service = Service(world, tokens=arguments.tokens.split(","), points=arguments.points, latency_seconds=arguments.latency_seconds)
    uvicorn.Server(configuration(service, port=arguments.port)).run()


if __name__ == "__main__":
    main()
