"""An S3 server of the tests' own, reached by URL as a bucket in the cloud would be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import boto3
import requests
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


def url(server: str, bucket: str, key: str = KEY, secret: str = SECRET) -> str:
    options = f"scheme=http&endpoint_override={server}&region=eu-central-1&allow_bucket_creation=true"
    return f"s3://{key}:{quote(secret, safe='')}@{bucket}/features?{options}"


def new_bucket(server: str, name: str) -> str:
    """The URL of a new bucket, named after something that need not be a bucket's name."""
    address = url(server, f"bucket-{name.replace('_', '-').lower()[:40]}")
    filesystem, path = fs.FileSystem.from_uri(address)
    filesystem.create_dir(path.partition("/")[0])
    return address


def without_rights(server: str, bucket: str, *actions: str) -> str:
    """The URL of a bucket that there is, with the keys of a user who may do nothing there but ``actions``. From now on
    the server lets nobody do what he has no right to.
    """
    new_bucket(server, bucket)
    iam = boto3.client(
        "iam",
        endpoint_url=f"http://{server}",
        region_name="eu-central-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )
    iam.create_user(UserName="reader")
    if actions:
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName="reader", PolicyName="reads", PolicyDocument=policy)
    keys = iam.create_access_key(UserName="reader")["AccessKey"]
    requests.post(f"http://{server}/moto-api/reset-auth", data=b"0", timeout=60).raise_for_status()
    return url(server, f"bucket-{bucket}", keys["AccessKeyId"], keys["SecretAccessKey"])
