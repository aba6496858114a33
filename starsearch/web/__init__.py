"""The search page, the HTTP API and the MCP server: one process that reads, and writes nothing but feedback."""
