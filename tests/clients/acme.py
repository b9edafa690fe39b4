"""The case `acme`: Larder gets its certificate from Pebble, Let's Encrypt's small test server, and clients that believe
nobody but Pebble pull through it.

Walk: Pebble (with a name server of its own, which leads every name to this machine) asks Larder to prove its names, once
in a TLS handshake and once by a file; curl and skopeo verify what it issued; a restart orders nothing, another name does.
"""

import json
import subprocess
from pathlib import Path

from clients import Skopeo
from work import Failed, answers, await_true, free_port, request

NAME, OTHER = "larder.example", "mirror.example"
KID = "kid-1"
MAC = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
LARDER = """\
[server]
listen = "127.0.0.1:{port}"
tls = {{ acme = true }}

[acme]
names = {names}
directory = "https://127.0.0.1:{directory}/dir"
accept_terms = true
contact = "ops@larder.example"
ca_file = "{ca}"
challenge = "{challenge}"
http_listen = "127.0.0.1:{http}"
{more}

[admin]
listen = "127.0.0.1:{admin}"

[cache]
path = "{cache}"
max_size = "10GiB"

[upstream."docker.io"]
url = "http://127.0.0.1:{upstream}"
"""


class Pebble:
    """The authority and its name server."""

    def __init__(self, work, tls_port, bound=False):
        self.work, self.folder = work, work.make("pebble-bound" if bound else "pebble")
        self.port, self.management, self.http = free_port(), free_port(), free_port()
        self.ca, self.root = self.folder / "own.pem", self.folder / "root.pem"
        key, dns = self.folder / "own.key", free_port()
        work.run("openssl", ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                             "-nodes", "-days", "2", "-subj", "/CN=pebble", "-addext", "subjectAltName=IP:127.0.0.1",
                             "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", self.ca])
        config = {"listenAddress": f"127.0.0.1:{self.port}", "managementListenAddress": f"127.0.0.1:{self.management}",
                  "certificate": str(self.ca), "privateKey": str(key), "httpPort": self.http, "tlsPort": tls_port,
                  "externalAccountBindingRequired": bound, "externalAccountMACKeys": {KID: MAC} if bound else {}}
        (self.folder / "pebble.json").write_text(json.dumps({"pebble": config}))
        self.names = work.start("pebble-names", ["pebble-challtestsrv", "-dns01", f"127.0.0.1:{dns}", "-http01", "",
                                                 "-https01", "", "-tlsalpn01", "", "-defaultIPv6", "",
                                                 "-management", f"127.0.0.1:{free_port()}"])
        # At its default one nonce in twenty is refused: so it stays.
        self.process = work.start(self.folder.name, ["pebble", "-config", self.folder / "pebble.json",
                                                     "-dnsserver", f"127.0.0.1:{dns}"], PEBBLE_VA_NOSLEEP="1")
        self.process.await_ready(self.fetch_root)

    def fetch_root(self):
        argv = ["curl", "-sSf", "--cacert", str(self.ca), f"https://127.0.0.1:{self.management}/roots/0"]
        done = subprocess.run(argv, capture_output=True, env=self.work.env())
        self.root.write_bytes(done.stdout)
        return done.returncode == 0

    def orders(self):
        """How many certificates it has issued."""
        log = (self.work.logs / f"{self.folder.name}.log").read_text(errors="replace")
        return log.count("Issued certificate serial")

    def stop(self):
        self.process.stop()
        self.names.stop()


class SkopeoByName(Skopeo):
    """Believes Pebble's root and nobody else."""
    label = "skopeo-acme"
    pulls = ("forty",)

    def pull(self, truth):
        target = self.folder / truth.name
        self.skopeo("copy", "--src-cert-dir", self.folder / "certs",
                    f"docker://{self.host}:{self.port}/docker.io/library/{truth.name}:{truth.tag}", f"dir:{target}")
        found = (target / "manifest.json").read_bytes()
        if found != truth.body:
            raise Failed("skopeo got another manifest")

    def trust(self, host, root):
        self.host = host
        folder = self.folder / "certs"
        folder.mkdir(exist_ok=True)
        (folder / "ca.crt").write_bytes(root.read_bytes())


class Own:
    """Larder as this case wants it."""

    def __init__(self, bench):
        self.bench, self.larder = bench, bench.larder

    def start(self, case, pebble, names, challenge, more="", empty=True):
        larder = self.larder
        larder.stop()
        larder.name = f"larder-{case}"
        if empty:
            larder.work.empty(larder.cache)
        larder.config.write_text(LARDER.format(
            port=larder.port, admin=larder.admin, cache=larder.cache, upstream=larder.upstream_port,
            names=json.dumps(names), directory=pebble.port, ca=pebble.ca, challenge=challenge, http=pebble.http, more=more))
        larder._start()

    def curl(self, pebble, host, *words):
        """The status of a GET of /v2/, or None if the certificate is not believed."""
        argv = ["curl", "-sS", "--cacert", str(pebble.root), "-o", "/dev/null", "-w", "%{http_code}",
                "--resolve", f"{host}:{self.larder.port}:127.0.0.1", *words, f"https://{host}:{self.larder.port}/v2/"]
        done = subprocess.run(argv, capture_output=True, text=True, env=self.bench.work.env())
        return done.stdout if done.returncode == 0 else None

    def until_believed(self, pebble, host):
        await_true(f"a certificate for {host}", lambda: self.curl(pebble, host) == "200", 60)

    def readiness(self):
        return request(self.larder.admin, "/readyz").body.decode()


def names_lead_here(work):
    """In our mount namespace only, see `run`."""
    hosts = work.folder / "hosts"
    hosts.write_text(Path("/etc/hosts").read_text() + f"\n127.0.0.1 {NAME} {OTHER}\n")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)


def acme(bench):
    work, larder, truth = bench.work, bench.larder, bench.truth["forty"]
    own, things = Own(bench), [larder]
    names_lead_here(work)
    try:
        pebble = Pebble(work, larder.port)
        things.append(pebble)
        client = SkopeoByName(work, larder, "skopeo-acme")
        things.append(client)
        with bench.reported("acme, tls-alpn-01"):
            own.start("acme", pebble, [NAME], "tls-alpn-01")
            own.until_believed(pebble, NAME)
            if own.curl(pebble, NAME, "--http1.1") != "200" or own.curl(pebble, OTHER) is not None:
                raise Failed("curl believes what it should not, or does not what it should")
            client.fresh()
            client.trust(NAME, pebble.root)
            client.pull(truth)
            bench.ok("acme, tls-alpn-01", "curl and skopeo believe the certificate and pull by it")
        with bench.reported("acme, restart"):
            issued = pebble.orders()
            pebble.stop()
            larder.restart()
            if own.curl(pebble, NAME) != "200":
                raise Failed("the certificate was lost, or the start waited for the authority")
            client.fresh()
            client.trust(NAME, pebble.root)
            client.pull(truth)
            if issued != 1 or pebble.orders() != issued:
                raise Failed(f"{pebble.orders()} orders, where one is enough")
            for word in ("check-config", "doctor"):
                shown = subprocess.run([larder.path, word, "--config", larder.config]
                                       + (["--no-network"] if word == "doctor" else []),
                                       capture_output=True, text=True).stdout
                if "renewed from" not in shown:
                    raise Failed(f"larder {word} does not show the certificate:\n{shown}")
            bench.ok("acme, restart", "one order serves before and after, without the authority; check-config and doctor show it")
        pebble = Pebble(work, larder.port, bound=True)
        things.append(pebble)
        with bench.reported("acme, http-01"):
            key = pebble.folder / "eab.key"
            key.write_text(MAC + "\n")
            key.chmod(0o600)
            more = f'eab_kid = "{KID}"\neab_key_file = "{key}"'
            own.start("acme-http", pebble, [NAME, "127.0.0.1"], "http-01", more)
            own.until_believed(pebble, NAME)
            own.until_believed(pebble, "127.0.0.1")
            if request(pebble.http, "/v2/").status != 404:
                raise Failed("http_listen answers more than challenges")
            client.fresh()
            client.trust("127.0.0.1", pebble.root)
            client.pull(truth)
            bench.ok("acme, http-01", "by a file, for a name and an address, with an external account")
        with bench.reported("acme, another name"):
            own.start("acme-other", pebble, [NAME, OTHER], "http-01", more, empty=False)
            own.until_believed(pebble, OTHER)
            if pebble.orders() != 2 or not answers(larder.admin, "/readyz") or '"until ' not in own.readiness():
                raise Failed(f"{pebble.orders()} orders; {own.readiness()}")
            bench.ok("acme, another name", "another list of names orders again; /readyz says until when it holds")
    finally:
        for thing in things:
            try:
                thing.stop()
            except Failed as failure:
                bench.fail("stopping", failure)
        subprocess.run(["umount", "/etc/hosts"], check=False)
