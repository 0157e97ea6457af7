"""The HTTP server: uvicorn, with a short way for the requests that come most."""
