"""Plain-torch training: one readable loop that every task's recipe calls."""
