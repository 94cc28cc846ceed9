"""A bucket to test against: moto's server, a test double of S3 in a thread of this process.

With `OPENIODM_TEST_S3` (the URL of an S3-compatible server) and AWS's variables for credentials, the same tests run
against that server instead.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from openiodm.clock import random_id

_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}


@dataclass(frozen=True)
class Bucket:
    """An empty one, seen by another client than the server's."""

    name: str
    endpoint: str
    client: Any

    @property
    def settings(self) -> dict[str, str]:
        """What a server needs to be told; credentials are in the environment."""
        return {"package_store": f"s3://{self.name}/ota", "s3_endpoint": self.endpoint, "s3_region": "us-east-1"}

    def keys(self) -> list[str]:
        """Of all objects, without the prefix."""
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return sorted(one["Key"].removeprefix("ota/") for one in found)

    def unfinished(self) -> list[str]:
        """Multipart uploads that were neither completed nor aborted."""
        return [one["Key"] for one in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]

    def read(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=f"ota/{key}")["Body"].read())

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"ota/{key}", Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"ota/{key}")


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a server, once for many buckets."""
    if given := os.environ.get("OPENIODM_TEST_S3"):
        yield given
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def new_bucket(endpoint: str, patch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of its own, and credentials for it in the environment."""
    if "OPENIODM_TEST_S3" not in os.environ:
        for name, value in _CREDENTIALS.items():
            patch.setenv(name, value)
    path_style = Config(s3={"addressing_style": "path"})
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=path_style)
    name = f"test-{random_id()[:20].lower().replace('_', 'x').replace('-', 'y')}"
    client.create_bucket(Bucket=name)
    try:
        yield Bucket(name, endpoint, client)
    finally:
        client.close()
