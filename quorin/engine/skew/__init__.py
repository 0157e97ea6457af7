"""What is served against what an offline source says it should be."""
