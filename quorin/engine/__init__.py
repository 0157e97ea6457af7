"""The engine's parts, internal: one folder a job. The public modules lie beside this folder."""
