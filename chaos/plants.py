"""Bugs on purpose, each planted in the database: with any of them the proof must fail, or it proves nothing."""

from dataclasses import dataclass
from typing import LiteralString

DEAD: LiteralString = (
    "INSERT INTO dead_letter (version_id, item_id, stage, reason, detail, attempts, content_hash) "
    "SELECT NEW.version_id, id, 'summarize', 'unreadable answer', 'planted', 3, content_hash FROM item WHERE id = NEW.item_id "
    "ON CONFLICT (version_id, item_id) DO UPDATE SET content_hash = excluded.content_hash; RETURN NULL;"
)
# the first of its batch, and whoever comes with a number that ten divides
SWAP: LiteralString = (
    "DECLARE first digest; BEGIN SELECT * INTO first FROM digest WHERE run_id = NEW.run_id AND summary_key <> NEW.summary_key LIMIT 1; "
    "IF NEW.item_id % 10 = 0 AND FOUND THEN UPDATE digest SET summary_key = NEW.summary_key WHERE version_id = first.version_id "
    "AND item_id = first.item_id; NEW.summary_key := first.summary_key; END IF; END;"
)
WRONG: LiteralString = (
    "NEW.embedding := (SELECT array_agg(CASE n WHEN 1 THEN 1 ELSE 0 END)::real[]::vector::halfvec FROM generate_series(1, 384) AS n);"
)
AGAIN: LiteralString = "IF NEW.item_id % 10 = 0 AND pg_trigger_depth() = 1 THEN INSERT INTO digest SELECT NEW.*; END IF;"


@dataclass(frozen=True)
class Plant:
    """A trigger on a table, before or after what happens to a row; `besides` is done with it, or is all there is."""

    what: str
    table: LiteralString = ""
    when: LiteralString = "BEFORE INSERT"
    body: LiteralString = ""
    besides: LiteralString = ""

    @property
    def statement(self) -> LiteralString:
        if not self.table:
            return self.besides
        result: LiteralString = "OLD" if "DELETE" in self.when else "NEW"
        return (
            f"{self.besides} CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {self.body} RETURN {result}; END $$; "
            f"CREATE TRIGGER aaa_planted {self.when} ON {self.table} FOR EACH ROW EXECUTE FUNCTION planted()"
        )


EVERY: LiteralString = "BEFORE INSERT OR UPDATE"
PLANTS = {
    "item-dropped": Plant("one new item in forty is not stored", "item", body="IF hashtext(NEW.node_id) % 40 = 0 THEN RETURN NULL; END IF;"),
    "update-lost": Plant("changes of one item in five are not stored", "item", "BEFORE UPDATE", "IF OLD.id % 5 = 0 AND OLD.stored_at IS NOT NULL THEN RETURN OLD; END IF;"),
    "mark-ahead": Plant("a mark is advanced before the rows that it stands for", "checkpoint", EVERY, "NEW.swept_at := NEW.swept_at + interval '2 days';"),
    "no-fence": Plant("every lease has the same token, so that the result of a stale worker is accepted", besides="ALTER SEQUENCE lease_token MAXVALUE 2 INCREMENT 2 CYCLE RESTART WITH 1"),
    "retried-twice": Plant("a retry writes its digests once more, and no key stops it", "digest", "AFTER INSERT", AGAIN, "ALTER TABLE digest DROP CONSTRAINT digest_pkey;"),
    "dead-letter-dropped": Plant("what failed for good is forgotten", "dead_letter", body="RETURN NULL;"),
    "buried-alive": Plant("one living item in twenty is buried", "item", "BEFORE UPDATE", "IF OLD.id % 20 = 0 THEN NEW.tombstoned_at := now(); END IF;"),
    "hash-frozen": Plant("a content hash stays what it was at first", "item", "BEFORE UPDATE", "IF OLD.content_hash IS NOT NULL THEN NEW.content_hash := OLD.content_hash; END IF;"),
    "digest-dropped": Plant("one digest in thirty is not stored", "digest", body="IF NEW.item_id % 30 = 0 THEN RETURN NULL; END IF;"),
    "wrong-vector": Plant("every digest has the same vector", "digest", body=WRONG),
    "one-wrong-vector": Plant("one digest in thirty has a wrong vector", "digest", body=f"IF NEW.item_id % 30 = 0 THEN {WRONG} END IF;"),
    "empty-summary": Plant("summaries are empty", "summary", body="NEW.text := '';"),
    "lease-kept": Plant("the lease of one item in thirty does not end", "due", "BEFORE DELETE", "IF OLD.item_id % 30 = 0 THEN RETURN NULL; END IF;"),
    "summaries-swapped": Plant("one digest in ten has the summary of another", "digest", body=SWAP),
    "all-dead": Plant("what becomes due is a dead letter at once", "due", body=DEAD),
    "calls-forgotten": Plant("totals of the ledger are halved", "engine_usage", EVERY, "NEW.requests := NEW.requests / 2;"),
}  # fmt: skip
