"""What one entry of the log holds, as bytes."""
