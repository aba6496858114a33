-- GitHub numbers issues apart from pull requests, and every host numbers its own: two items may well have the same database id, and on two
-- hosts the same node id. The second database id ended the crawl that met it, and every later one; the second node id buried the first item.
-- Nothing looks for a database id. A node id is looked for within its host, and is one item's there: release_node_ids (store/sweeps.py).
ALTER TABLE item DROP CONSTRAINT item_database_id_key, DROP CONSTRAINT item_node_id_key;
CREATE INDEX item_node_id ON item (node_id);
