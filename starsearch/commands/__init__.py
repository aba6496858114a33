"""The commands of `starsearch`, grouped by what a person wants. Imports stand in the functions, so that each starts in a second."""
