"""The bill of materials, CycloneDX 1.5: the crates and Rust's own library in the program, and the Debian packages in the image.

Written here and not by cargo-cyclonedx (docs/decisions/0140-releases.md says why).
"""

import datetime
import json
import uuid
from urllib.parse import quote

from archive import sha256


def document(release, linked, packages):
    def crate_url(key):
        return f"pkg:cargo/{key[0]}@{quote(key[1], safe='')}"

    def component(crate):
        found = {"type": "library", "bom-ref": crate_url((crate.name, crate.version)), "name": crate.name, "version": crate.version,
                 "purl": crate_url((crate.name, crate.version))}  # fmt: skip
        if crate.licence:
            found["licenses"] = [{"expression": crate.licence}]
        if crate.checksum:
            found["hashes"] = [{"alg": "SHA-256", "content": crate.checksum}]
        return found

    own = linked[("larder", release.version)]
    program = component(own) | {"type": "application", "hashes": [{"alg": "SHA-256", "content": sha256(release.binary)}]}
    crates = [crate for crate in linked.values() if crate is not own]
    rust = [
        {"type": "library", "bom-ref": "rust-std", "name": "rust-std", "version": release.rust, "purl": f"pkg:generic/rust-std@{release.rust}",
         "licenses": [{"expression": "MIT OR Apache-2.0"}]}
    ] if release.rust else []  # fmt: skip
    debian = [
        {"type": "library", "bom-ref": package.url, "name": package.name, "version": package.version, "purl": package.url,
         "properties": [{"name": "larder:part-of", "value": "container image"}]}
        for package in packages
    ]  # fmt: skip
    time = datetime.datetime.fromtimestamp(release.epoch, datetime.UTC)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{release.name}:{release.source.revision}").urn,
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": program,
            "properties": [{"name": "larder:revision", "value": release.source.revision}],
        },
        "components": [component(crate) for crate in crates] + rust + debian,
        "dependencies": [
            {"ref": crate_url((crate.name, crate.version)), "dependsOn": [crate_url(need) for need in crate.needs]}
            for crate in linked.values()
        ],
    }
    return (json.dumps(bill, indent=2) + "\n").encode()
