"""How many real items ask the same prompt: python -m benchmarks.duplicates (needs ../shared/data).

Bots and templates open the same issue in many repositories; the second one costs no request. Counted over the keys that summaries
are stored under, without asking anything.
"""

import gzip
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from starsearch.errors import Rejected
from starsearch.inference.prompts import prompt_for
from starsearch.models import DueItem, parse_item

SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


def main() -> None:
    for name in ("sample.jsonl", "items.jsonl.gz"):
        path = SHARED_DATA / name
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            keys, titles, rejected = Counter[bytes](), dict[bytes, str](), 0
            for line in lines:
                try:
                    item = parse_item(json.loads(line))
                except Rejected:
                    rejected += 1
                    continue
                due = DueItem(1, item.type, item.state, item.title, item.body, item.digest_comments, b"", datetime(2026, 1, 1, tzinfo=UTC))
                key = prompt_for(due, context_tokens=None).key("any")
                keys[key] += 1
                titles[key] = item.title
        again = keys.total() - len(keys)
        print(f"{name}: {keys.total():,} items ({rejected} rejected), {again:,} prompts asked before ({again / keys.total():.2%})")
        for key, number in keys.most_common(5):
            if number > 1:
                print(f"  {number} times: {titles[key][:80]}")


if __name__ == "__main__":
    main()
