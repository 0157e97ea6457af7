"""Replace the rows of a schema whole: the coordinator of a load, and past states to go back to."""
