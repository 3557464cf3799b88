"""A server on this machine that speaks as much of Google Cloud Storage's JSON API as gcsfs and TensorStore use.

Objects are in memory. Writes and deletions honour ifGenerationMatch.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_OBJECT = re.compile(
  r"(?:/download|/upload)?/storage/v1/b/([^/]+)/o(?:/([^/]+))?(?:/(rewriteTo/b/[^/]+|moveTo)/o/([^/]+))?"
)


class Bucket:
  """What the server holds: (bucket, name) -> (generation, bytes)."""

  def __init__(self, url: str):
    self.url = url
    self.objects: dict[tuple[str, str], tuple[int, bytes]] = {}
    self.uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
    self.requests: list[str] = []
    self.losing: set[str] = set()  # names of objects: the next write of one is done, and its answer lost
    self.generations = itertools.count(1)
    self.lock = threading.Lock()

  def environment(self) -> dict[str, str]:
    """What makes a process use this server."""
    return {
      "STORAGE_EMULATOR_HOST": self.url,
      "TENSORSTORE_GCS_HTTP_URL": self.url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }

  def names(self, bucket: str = "bucket") -> list[str]:
    return sorted(name for held, name in self.objects if held == bucket)

  def write(self, bucket: str, name: str, data: bytes, query: dict[str, str]) -> dict | None:
    """The new object's metadata; None where it is not as the condition says."""
    with self.lock:
      if not self._as_expected(bucket, name, query):
        return None
      self.objects[bucket, name] = (next(self.generations), bytes(data))
      return self.metadata(bucket, name)

  def delete(self, bucket: str, name: str, query: dict[str, str]) -> int:
    with self.lock:
      if (bucket, name) not in self.objects:
        return 404
      if not self._as_expected(bucket, name, query):
        return 412
      del self.objects[bucket, name]
      return 204

  def _as_expected(self, bucket: str, name: str, query: dict[str, str]) -> bool:
    wanted = query.get("ifGenerationMatch")
    return wanted is None or int(wanted) == self.objects.get((bucket, name), (0, b""))[0]

  def metadata(self, bucket: str, name: str) -> dict:
    generation, data = self.objects[bucket, name]
    quoted = urllib.parse.quote(name, safe="")
    return {
      "kind": "storage#object",
      "bucket": bucket,
      "name": name,
      "id": f"{bucket}/{name}/{generation}",
      "size": str(len(data)),
      "generation": str(generation),
      "metageneration": "1",
      "updated": "2024-01-01T00:00:00.000Z",
      "timeCreated": "2024-01-01T00:00:00.000Z",
      "contentType": "application/octet-stream",
      "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
      "mediaLink": f"{self.url}/download/storage/v1/b/{bucket}/o/{quoted}?alt=media",
    }

  def listing(self, bucket: str, query: dict[str, str]) -> dict:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    items, prefixes = [], set()
    for name in self.names(bucket):
      if not name.startswith(prefix) or not query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff"):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
      else:
        items.append(self.metadata(bucket, name))
    most = int(query.get("maxResults", 1000))
    return {"kind": "storage#objects", "items": items[:most], "prefixes": sorted(prefixes)}


class _Handler(BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  bucket: Bucket

  def log_message(self, *_) -> None:
    pass

  def _answer(self, code: int, body: bytes | dict = b"", **headers: str) -> None:
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    self.send_response(code)
    self.send_header("Content-Length", str(len(data)))
    self.send_header("Content-Type", "application/json" if isinstance(body, dict) else "application/octet-stream")
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    with contextlib.suppress(BrokenPipeError):  # who asked has gone
      self.wfile.write(data)

  def _handle(self) -> None:
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    length = int(self.headers.get("Content-Length") or 0)
    body = self.rfile.read(length) if length else b""
    self.bucket.requests.append(f"{self.command} {self.path}")
    match = _OBJECT.fullmatch(url.path)
    if match is None:
      known = re.fullmatch(r"/storage/v1/b/([^/]+)", url.path)
      self._answer(*((200, {"name": known[1]}) if known and known[1] == "bucket" else (404, {"error": {"code": 404}})))
      return
    bucket, quoted, copy, to_quoted = match.groups()
    name = urllib.parse.unquote(quoted) if quoted else query.get("name", "")
    if bucket != "bucket":
      self._answer(404, {"error": {"code": 404, "message": f"The bucket {bucket} does not exist."}})
    elif "/upload/" in url.path:
      self._upload(bucket, name, query, body)
    elif copy:
      self._copy(bucket, name, urllib.parse.unquote(to_quoted))
      if copy == "moveTo":
        self.bucket.delete(bucket, name, {})
    elif self.command == "DELETE":
      self._answer(self.bucket.delete(bucket, name, query))
    elif not quoted:
      self._answer(200, self.bucket.listing(bucket, query))
    else:
      self._read(bucket, name, query)

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _handle

  def _read(self, bucket: str, name: str, query: dict[str, str]) -> None:
    held = self.bucket.objects.get((bucket, name))
    if held is None:
      self._answer(404, {"error": {"code": 404, "message": f"No such object: {bucket}/{name}"}})
      return
    generation, data = held
    headers = {"x_goog_generation": str(generation), "x_goog_stored_content_length": str(len(data))}
    if query.get("ifGenerationNotMatch") == str(generation):
      self._answer(304, **headers)
    elif query.get("alt") != "media":
      self._answer(200, self.bucket.metadata(bucket, name))
    elif part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
      first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
      if first >= len(data):
        self._answer(416)
        return
      self._answer(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}", **headers)
    else:
      self._answer(200, data, **headers)

  def _copy(self, bucket: str, name: str, to_name: str) -> None:
    if (bucket, name) not in self.bucket.objects:
      self._answer(404, {"error": {"code": 404}})
      return
    found = self.bucket.write(bucket, to_name, self.bucket.objects[bucket, name][1], {})
    assert found is not None
    self._answer(200, {**found, "done": True, "resource": found})

  def _upload(self, bucket: str, name: str, query: dict[str, str], body: bytes) -> None:
    kind = query.get("uploadType")
    if kind == "resumable" and "upload_id" not in query:
      number = f"upload{len(self.bucket.uploads)}"
      name = name or json.loads(body)["name"]
      self.bucket.uploads[number] = (bucket, name, query, bytearray())
      place = f"{self.bucket.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
      self._answer(200, Location=place)
      return
    if kind == "resumable":
      bucket, name, query, data = self.bucket.uploads[query["upload_id"]]
      data += body
      if (self.headers.get("Content-Range") or "").rpartition("/")[2] != str(len(data)):
        self._answer(308, Range=f"bytes=0-{len(data) - 1}")
        return
      body = bytes(data)
    elif kind == "multipart":
      name, body = _parts(body, name)
    found = self.bucket.write(bucket, name, body, query)
    if found and name in self.bucket.losing:
      self.bucket.losing.remove(name)
      self._answer(503)
      return
    self._answer(*((200, found) if found else (412, {"error": {"code": 412, "message": "conditionNotMet"}})))


def _parts(body: bytes, name: str) -> tuple[str, bytes]:
  """Name and content of a multipart upload: metadata as JSON, then the content."""
  boundary = body.split(b"\n", 1)[0].strip()
  _, metadata, content, *_ = body.split(boundary)
  said = json.loads(metadata.split(b"\n\n" if b"\r\n\r\n" not in metadata else b"\r\n\r\n", 1)[1])
  blank = b"\r\n\r\n" if b"\r\n\r\n" in content[:200] else b"\n\n"
  data = content.split(blank, 1)[1]
  return said.get("name", name), data.removesuffix(b"\r\n" if blank == b"\r\n\r\n" else b"\n")


@contextlib.contextmanager
def serve() -> Iterator[Bucket]:
  """Runs the server, with a bucket named "bucket", until the context ends."""
  handler = type("Handler", (_Handler,), {})
  server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
  server.handle_error = lambda *_: None  # connections that their owner has given up
  handler.bucket = Bucket(f"http://127.0.0.1:{server.server_port}")
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield handler.bucket
  finally:
    server.shutdown()
    server.server_close()
