"""How hard we try: retries, timeouts, clients opened and closed."""

from tasks import quiet as quiet  # before Prefect is imported: it reads its settings once
