"""A registry on loopback that stands in for Docker Hub and the others: a few small images under the names that documents use."""

import http.server
import json
import re
import threading

import images

# Repository -> tags. What a document pulls has to be here: a name that nobody knows is a mistake of the document.
REPOSITORIES = {
    "library/alpine": ["3.19", "3.20", "3.21", "3.22", "latest"],
    "library/nginx": ["1.25.5", "1.26.3", "1.27.4", "1.27-alpine", "latest"],
    "library/redis": ["7.4-alpine", "8.0-alpine", "latest"],
    "library/busybox": ["1.37", "latest"],
    "grafana/grafana": ["11.4.0", "latest"],
    "owner/app": ["1.0", "latest"],
    "owner/image": ["tag", "latest"],
    "prometheus/prometheus": ["v3.0.1", "latest"],
}
REGISTRIES = ["docker.io", "ghcr.io", "quay.io"]
ARCHITECTURES = ["amd64", "arm64"]
PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|tags)/(?P<reference>[^/?]+)(?:\?.*)?$")


def image(name, tag):
    """An index with an image for each architecture, of two layers each."""
    made = {}
    for arch in ARCHITECTURES:
        files = [{f"{part}-{tag}": images.noise(f"{name} {tag} {arch} {part}", 100_000)} for part in ("base", "program")]
        made[arch] = images.image(arch, [images.gzip_layer(layer) for layer in files])
    entries = [each.descriptor(platform={"architecture": arch, "os": "linux"}) for arch, each in made.items()]
    return images.index(entries, [tag], list(made.values()))


class Upstream:
    def __init__(self):
        self.tags, self.manifests, self.blobs = {}, {}, {}
        for name, tags in REPOSITORIES.items():
            self.tags[name] = sorted(tags)
            for tag in tags:
                self._add(name, image(name, tag))
        shared = self

        class Handler(Answering):
            upstream = shared

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _add(self, name, manifest):
        for child in manifest.children:
            self._add(name, child)
        for blob in manifest.blobs:
            self.blobs[name, blob.digest] = blob
        for reference in [manifest.digest, *manifest.tags]:
            self.manifests[name, reference] = manifest

    def environment(self):
        """Variables by which a Larder without a configuration finds this registry in the place of the real ones."""
        keys = {f"LARDER_UPSTREAM__{name.upper().replace('.', '_')}__URL" for name in REGISTRIES}
        return {key: f"http://127.0.0.1:{self.port}" for key in keys}

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Answering(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: Upstream

    def do_GET(self):
        known, found = self.upstream, PATH.match(self.path)
        if self.path.rstrip("/") == "/v2":
            return self._send(200, "application/json", b"{}")
        if not found:
            return self._missing("UNSUPPORTED")
        key = found["name"], found["reference"]
        if found["kind"] == "tags" and found["name"] in known.tags:
            body = json.dumps({"name": found["name"], "tags": known.tags[found["name"]]}).encode()
            return self._send(200, "application/json", body)
        if found["kind"] == "manifests" and (manifest := known.manifests.get(key)):
            return self._send(200, manifest.media_type, manifest.body, {"Docker-Content-Digest": manifest.digest})
        if found["kind"] == "blobs" and (blob := known.blobs.get(key)):
            return self._blob(blob)
        return self._missing("MANIFEST_UNKNOWN" if found["kind"] == "manifests" else "BLOB_UNKNOWN")

    do_HEAD = do_GET

    def _blob(self, blob):
        headers = {"Docker-Content-Digest": blob.digest, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        if not wanted or first >= blob.size:
            return self._send(200, "application/octet-stream", blob.content, headers)
        last = min(int(wanted[2] or blob.size), blob.size - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        return self._send(206, "application/octet-stream", blob.content[first:last + 1], headers)

    def _missing(self, code):
        self._send(404, "application/json", json.dumps({"errors": [{"code": code, "message": "not here"}]}).encode())

    def _send(self, status, media_type, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Type": media_type, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass
