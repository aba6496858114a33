"""When and in what order: Prefect flows, each a paragraph of awaits."""
