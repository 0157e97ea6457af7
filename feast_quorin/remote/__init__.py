"""The store over HTTP: the messages, which both ends share, and the client's end. The server's is in ``server/``."""
