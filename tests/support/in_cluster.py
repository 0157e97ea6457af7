"""Run a module as in a pod: the files of its service account are in the folder that ``SERVICE_ACCOUNT`` names.

A pod has them at a fixed path of the root of its file system, which tests must not write to.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from feast.permissions.auth import kubernetes_token_parser
from kubernetes.config import incluster_config


def main() -> None:
    account = Path(os.environ["SERVICE_ACCOUNT"])
    incluster_config.SERVICE_TOKEN_FILENAME = str(account / "token")
    incluster_config.SERVICE_CERT_FILENAME = str(account / "ca.crt")
    kubernetes_token_parser._namespace_file_path = str(account / "namespace")
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
