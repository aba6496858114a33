"""Bugs on purpose, each a trigger in the database: with any of them the proof must fail, or it proves nothing."""

DEAD = (
    "INSERT INTO dead_letter (version_id, item_id, stage, reason, detail, attempts, content_hash) "
    "SELECT NEW.version_id, id, 'summarize', 'unreadable answer', 'planted', 3, content_hash FROM item WHERE id = NEW.item_id "
    "ON CONFLICT (version_id, item_id) DO UPDATE SET content_hash = excluded.content_hash; RETURN NULL;"
)
# the first of its batch, and whoever comes with a number that ten divides
SWAP = (
    "DECLARE first digest; BEGIN SELECT * INTO first FROM digest WHERE run_id = NEW.run_id AND summary_key <> NEW.summary_key LIMIT 1; "
    "IF NEW.item_id % 10 = 0 AND FOUND THEN UPDATE digest SET summary_key = NEW.summary_key WHERE version_id = first.version_id "
    "AND item_id = first.item_id; NEW.summary_key := first.summary_key; END IF; END;"
)

PLANTS = {
    "item-dropped": ("item", "INSERT", "IF hashtext(NEW.node_id) % 40 = 0 THEN RETURN NULL; END IF;"),
    "update-lost": ("item", "UPDATE", "IF OLD.id % 5 = 0 AND OLD.stored_at IS NOT NULL THEN RETURN OLD; END IF;"),
    "mark-ahead": ("checkpoint", "INSERT OR UPDATE", "NEW.swept_at := NEW.swept_at + interval '2 days';"),
    "buried-alive": ("item", "UPDATE", "IF OLD.id % 20 = 0 THEN NEW.tombstoned_at := now(); END IF;"),
    "hash-frozen": ("item", "UPDATE", "IF OLD.content_hash IS NOT NULL THEN NEW.content_hash := OLD.content_hash; END IF;"),
    "digest-dropped": ("digest", "INSERT", "IF NEW.item_id % 30 = 0 THEN RETURN NULL; END IF;"),
    "wrong-vector": ("digest", "INSERT", "NEW.embedding := (SELECT array_agg(CASE n WHEN 1 THEN 1 ELSE 0 END)::real[]::vector::halfvec FROM generate_series(1, 384) AS n);"),
    "empty-summary": ("summary", "INSERT", "NEW.text := '';"),
    "lease-kept": ("due", "DELETE", "IF OLD.item_id % 30 = 0 THEN RETURN NULL; END IF;"),
    "summaries-swapped": ("digest", "INSERT", SWAP),
    "all-dead": ("due", "INSERT", DEAD),
    "calls-forgotten": ("engine_usage", "INSERT OR UPDATE", "NEW.requests := NEW.requests / 2;"),
}  # fmt: skip


def statement(name: str) -> str:
    table, when, body = PLANTS[name]
    result = "OLD" if when == "DELETE" else "NEW"
    return (
        f"CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN {result}; END $$; "
        f"CREATE TRIGGER aaa_planted BEFORE {when} ON {table} FOR EACH ROW EXECUTE FUNCTION planted()"
    )
