"""What is done: crawl, store, digest and search issues and pull requests. Never imports Prefect."""
