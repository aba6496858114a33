-- REINDEX INDEX CONCURRENTLY builds a graph with the settings of a new one (GRAPH in store/versions.py); until then it keeps its edges.
DO $$
DECLARE
  graph regclass;
BEGIN
  FOR graph IN
    SELECT i.oid FROM pg_inherits h JOIN pg_index x ON x.indrelid = h.inhrelid JOIN pg_class i ON i.oid = x.indexrelid
    JOIN pg_am a ON a.oid = i.relam WHERE h.inhparent = 'digest'::regclass AND a.amname = 'hnsw'
  LOOP
    EXECUTE format('ALTER INDEX %s SET (m = 24, ef_construction = 128)', graph);
  END LOOP;
END
$$;
