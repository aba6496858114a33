"""Bugs on purpose, each a trigger in the database: with any of them the proof must fail, or it proves nothing."""

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
    "calls-forgotten": ("engine_usage", "INSERT OR UPDATE", "NEW.requests := NEW.requests / 2;"),
}  # fmt: skip


def statement(name: str) -> str:
    table, when, body = PLANTS[name]
    result = "OLD" if when == "DELETE" else "NEW"
    return (
        f"CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN {result}; END $$; "
        f"CREATE TRIGGER aaa_planted BEFORE {when} ON {table} FOR EACH ROW EXECUTE FUNCTION planted()"
    )
