"""The `sums` world: additions and subtractions, worked out on a scratchpad, and their exact checker."""
