"""Breaks everything that breaks in production, on a schedule drawn from a seed, and then proves from the database that nothing was lost."""
