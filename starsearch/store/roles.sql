-- What each role may do; {owner}, {writer} and {reader} exist. Safe to run again, and run again after each migration.
-- The owner migrates and builds index versions; the writer crawls, digests and purges; the reader searches and asks.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO {writer}, {reader};
GRANT SELECT ON ALL TABLES IN SCHEMA public TO {writer}, {reader};
GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {writer};
GRANT INSERT ON feedback TO {reader};  -- people's thumbs
REVOKE ALL ON FUNCTION account_answer FROM PUBLIC;
GRANT EXECUTE ON FUNCTION account_answer TO {writer}, {reader};  -- what answers cost, which the web process adds to the ledger
ALTER ROLE {reader} LOGIN;  -- migration 0011 may have made it without
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {writer};
-- What keeps the schema and the versions right is the owner's.
REVOKE INSERT, UPDATE, DELETE ON schema_migration, index_version FROM {writer};
-- Where a version's engines serve now, and by what they are known again, whoever digests writes down.
GRANT UPDATE (embedding_base_url, summary_base_url, probe, summary_identity) ON index_version TO {writer};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT SELECT ON TABLES TO {writer}, {reader};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT INSERT, UPDATE, DELETE ON TABLES TO {writer};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT USAGE ON SEQUENCES TO {writer};
-- A search that takes longer than this is a mistake or an attack; a writer's statement is at most one batch.
ALTER ROLE {reader} IN DATABASE {database} SET statement_timeout = '5s';
ALTER ROLE {reader} IN DATABASE {database} SET idle_in_transaction_session_timeout = '30s';
ALTER ROLE {writer} IN DATABASE {database} SET statement_timeout = '10min';
ALTER ROLE {writer} IN DATABASE {database} SET idle_in_transaction_session_timeout = '10min';
