"""Those beside whom the engine is measured: each a module with one class that holds the same rows (see `rival`)."""
