"""An S3 server of the tests' own, reached by URL as a bucket in the cloud would be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from pyarrow import fs

KEY, SECRET = "AKIAOFTHETESTS", "only/the+owner=knows"
QUOTED = quote(SECRET, safe="")
SERVER = """
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def running() -> Iterator[str]:
    """The address of an S3 server that chose its own port."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the server did not start"
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def url(server: str, bucket: str) -> str:
    options = f"scheme=http&endpoint_override={server}&region=eu-central-1&allow_bucket_creation=true"
    return f"s3://{KEY}:{QUOTED}@{bucket}/features?{options}"


def new_bucket(server: str, name: str) -> str:
    """The URL of a new bucket, named after something that need not be a bucket's name."""
    address = url(server, f"bucket-{name.replace('_', '-').lower()[:40]}")
    filesystem, path = fs.FileSystem.from_uri(address)
    filesystem.create_dir(path.partition("/")[0])
    return address
