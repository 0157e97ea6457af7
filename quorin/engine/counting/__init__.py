"""What this machine's processes count, in shared memory."""
