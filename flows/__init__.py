"""When and in what order: Prefect flows, each a paragraph of awaits."""

from tasks import quiet as quiet  # before Prefect is imported: it reads its settings once
