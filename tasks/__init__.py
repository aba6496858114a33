"""How hard we try: retries, timeouts, clients opened and closed."""
