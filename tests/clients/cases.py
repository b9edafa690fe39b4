"""The cases, their order, and the report. Started by `run`.

Walk: main() prepares tools, content and the two registries (Bench), then each
case takes the bench, prints `ok` or `FAIL` lines and adds rows to the tables.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager

import images
import tools
from acme import acme
from bundle import air_gap
from clients import (BuildKit, Containerd, ContainerdNs, Dockerd, Plain, PlainAlias,
                     Podman, PodmanMirror, Skopeo, SkopeoTags)
from doctor import doctor
from larder import Larder, binary
from login import login
from proxies import haproxy, nginx
from registry import Registry, Traffic
from work import Failed, Work, await_true, exit_on_signals, tail

MIB = 1024 * 1024
CROWD = 30  # clients on one cold 256 MiB blob
CROWD_HASHED = 6  # of which so many hash what they got; the others count it


class Measure:
    """What one phase cost: a row of the table, added however the phase ends."""

    def __init__(self, bench, who, phase):
        self.bench, self.who, self.phase = bench, who, phase
        self.traffic, self.seconds, self.peak, self.result = Traffic(), 0, 0, "FAIL"

    def begin(self):
        self.mark, self.begun = self.bench.upstream.mark(), time.monotonic()

    def end(self):
        self.seconds = time.monotonic() - self.begun
        self.traffic = self.bench.upstream.since(self.mark)
        if self.traffic.strangers:
            raise Failed(f"these asked the upstream themselves: {self.traffic.strangers}")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.result = "FAIL" if kind else "ok"
        self.peak, self.private = self.bench.larder.memory()
        self.bench.rows.append(self)


class Bench:
    """What the cases work on: Larder between the clients and a real registry."""

    def __init__(self, work, path):
        self.work = work
        self.upstream = Registry(work)
        self.larder = Larder(work, path, self.upstream.port)
        self.truth = {}     # by image name
        self.failures = []
        self.not_run = []   # cases whose tool is missing, where that is no failure
        self.rows = []      # of the big table: Measure
        self.figures = []   # lines below it

    def fill(self, names):
        folder = self.work.make("content")
        self.upstream.start()
        for name in names:
            begun = time.monotonic()
            self.upstream.push(name, images.BUILDERS[name](images.arch(), folder))
            truth = self.truth[name] = self.upstream.truth(name)
            print(f"made {name}: {len(truth.layers)} layers, {truth.digest[:19]}, "
                  f"{time.monotonic() - begun:.1f} s", flush=True)

    @contextmanager
    def reported(self, label, client=None):
        """What goes wrong inside fails the case `label`, not the run. Any exception:
        an answer that is not as it should be can break a parser anywhere."""
        try:
            yield
        except Failed as failure:
            self.fail(label, failure, *self.logs(client))
        except Exception:
            self.fail(label, traceback.format_exc(), *self.logs(client))

    def logs(self, client):
        daemon = client and client.daemon
        return [self.larder.log, daemon.log] if daemon else [self.larder.log]

    def ok(self, label, text):
        print(f"ok    {label}: {text}", flush=True)

    def fail(self, label, reason, *logs):
        self.failures.append(label)
        print(f"FAIL  {label}: {reason}", flush=True)
        for log in logs:
            print(f"    the end of {log.name}:\n{tail(log)}", flush=True)


# --- one client through all phases ---


class Phases:
    """Cold, hot, upstream gone, after a restart; for one client and its images."""

    def __init__(self, bench, client):
        self.bench, self.client = bench, client
        self.truths = [bench.truth[name] for name in client.pulls]

    def run(self):
        bench, larder, upstream = self.bench, self.bench.larder, self.bench.upstream
        try:
            larder.start_empty(self.client.name)
            if not self.phase("cold", self.check_cold):
                bench.fail(self.client.name, "the later phases were not tried, for they build on the cold one")
                return
            self.phase("hot", self.check_held)
            upstream.stop()
            self.phase("upstream gone", self.check_held)
            larder.restart()
            self.phase("restarted", self.check_held)
        finally:
            stop_all([self.client, upstream, larder], bench)
            upstream.start()

    def phase(self, name, check):
        """Every image once, into an empty store; then what the upstream saw of it."""
        bench, client, label = self.bench, self.client, f"{self.client.name}, {name}"
        measure = Measure(bench, client.name, name)
        with bench.reported(label, client), measure:
            client.fresh()
            log_mark = bench.larder.mark()
            measure.begin()
            for truth in self.truths:
                client.pull(truth)
            measure.end()
            self.check_larder_saw(log_mark)
            check(measure.traffic)
            bench.ok(label, f"{' '.join(client.pulls)} as upstream; {in_words(measure)}")
        return measure.result == "ok"

    def check_cold(self, traffic):
        """Each blob once, each manifest at most once however it was asked for."""
        blobs, manifests = set(), 0
        for truth in self.truths:
            needed, named = self.client.needs(truth)
            blobs |= needed
            manifests += len(named)
        each_once(traffic, blobs)
        if traffic.manifests.total() > manifests:
            raise Failed(f"{manifests} manifests took {traffic.manifests.total()} upstream GETs: "
                         f"{dict(traffic.manifests)}")

    def check_held(self, traffic):
        if traffic.blobs or traffic.manifests:
            raise Failed(f"what is held was fetched again: {dict(traffic.manifests)} {dict(traffic.blobs)}")

    def check_larder_saw(self, log_mark):
        """Nobody went around it (a Docker daemon that dislikes its mirror tries the
        Hub without a word)."""
        for truth in self.truths:
            self._await_logged(self.client.seen(truth), log_mark)

    def _await_logged(self, path, log_mark):
        await_true(f"{path} in Larder's access log of this phase",
                   lambda: path in self.bench.larder.logged_since(log_mark), 5)


def each_once(traffic, blobs):
    wrong = {digest: traffic.blobs[digest] for digest in blobs if traffic.blobs[digest] != 1}
    if wrong:
        raise Failed(f"upstream GETs, which should be 1 for each of {len(blobs)} blobs: {wrong}")
    more = {digest: count for digest, count in traffic.blobs.items() if count > 1}
    if more:
        raise Failed(f"fetched more than once: {more}")


def stop_all(things, bench):
    for thing in things:
        try:
            thing.stop()
        except Failed as failure:
            bench.fail("stopping", failure)


def phases_of(kind):
    return lambda bench: Phases(bench, kind(bench.work, bench.larder)).run()


# --- within tag_ttl ---


def trusted_tags(bench):
    """Within tag_ttl a hot pull asks the upstream nothing at all."""
    client = Skopeo(bench.work, bench.larder, "skopeo-ttl")
    truth = bench.truth["forty"]
    try:
        bench.larder.start_empty("ttl", tag_ttl="5m")
        client.fresh()
        client.pull(truth)
        client.fresh()
        with Measure(bench, "skopeo", "hot, tag_ttl 5m") as measure:
            measure.begin()
            client.pull(truth)
            measure.end()
            if measure.traffic != Traffic():
                raise Failed(f"the upstream was asked within tag_ttl: {in_words(measure)}")
        bench.ok("ttl", "within tag_ttl a hot pull made no upstream request")
    finally:
        stop_all([client, bench.larder], bench)


# --- ten at once ---


def ten_at_once(bench):
    """Ten clients of all kinds ask for the same cold images in the same moment."""
    crowd = [kind(bench.work, bench.larder) for kind in (Dockerd, Containerd, Podman, PodmanMirror)]
    crowd += [Skopeo(bench.work, bench.larder, f"skopeo-{n}") for n in range(6)]
    truths = [bench.truth[name] for name in ("forty", "debian")]
    try:
        bench.larder.start_empty("ten")
        for client in crowd:
            client.fresh()
        with Measure(bench, "ten at once", "cold") as measure:
            measure.begin()
            problems = together(crowd, truths)
            measure.end()
            for client, problem in problems:
                bench.fail(f"ten at once, {client.name}", problem)
            each_once(measure.traffic, set().union(*(truth.blobs for truth in truths)))
            if measure.traffic.manifests.total() > len(truths):
                raise Failed(f"manifests fetched more than once: {dict(measure.traffic.manifests)}")
            if problems:
                raise Failed(f"{len(problems)} of {len(crowd)} clients failed")
        bench.ok("ten at once", f"{len(crowd)} clients as upstream; {in_words(measure)}")
    finally:
        stop_all([*crowd, bench.larder], bench)


def together(crowd, truths):
    """All of them start at the barrier; returns who failed, and why."""
    problems, start = [], threading.Barrier(len(crowd))

    def pull(client):
        start.wait()
        try:
            for truth in truths:
                client.pull(truth)
        except Exception as problem:  # a thread's exception would only be printed
            problems.append((client, problem))

    threads = [threading.Thread(target=pull, args=(client,)) for client in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return problems


# --- thirty clients on one cold 256 MiB blob ---


def crowd_on_one_blob(bench):
    digest = bench.truth["big"].layers[0]
    url = f"http://127.0.0.1:{bench.larder.port}/v2/docker.io/library/big/blobs/{digest}"
    try:
        bench.larder.start_empty("big")
        with Measure(bench, f"{CROWD} × 256 MiB", "cold") as measure:
            measure.begin()
            curls = [Curl(bench.work, url, hashed=n < CROWD_HASHED) for n in range(CROWD)]
            answers = [curl.result() for curl in curls]
            measure.end()
            for answer in answers:
                answer.check(digest)
            each_once(measure.traffic, {digest})
            if measure.traffic.bytes > images.BIG_BYTES * 1.01:
                raise Failed(f"{measure.traffic.bytes} bytes crossed the upstream link")
        bench.ok("big", f"{CROWD} clients, all right; {in_words(measure)}")
        bench.figures += crowd_figures(measure, sorted(answer.first_byte for answer in answers))
    finally:
        stop_all([bench.larder], bench)


def crowd_figures(measure, first):
    traffic, served = measure.traffic, CROWD * images.BIG_BYTES / MIB
    return [
        f"{CROWD} clients on one cold {images.BIG_BYTES // MIB} MiB blob: {traffic.blobs.total()} upstream GET, "
        f"{traffic.bytes} bytes upstream, {measure.seconds:.2f} s, "
        f"{served / measure.seconds:.0f} MiB/s to the clients",
        f"    first byte: median {milli(statistics.median(first))}, last {milli(first[-1])}; "
        f"{CROWD_HASHED} clients hashed what they got, {CROWD - CROWD_HASHED} counted it",
        f"    Larder's peak memory (VmHWM): {measure.peak / MIB:.1f} MiB; "
        f"RssAnon at the end: {measure.private / MIB:.1f} MiB",
    ]


class Curl:
    """One curl in the background. Its body goes to /dev/null or to sha256sum."""

    def __init__(self, work, url, hashed=False):
        self.hashed = hashed
        report = "%{stderr}%{http_code} %{size_download} %{time_starttransfer}"
        sink = "| sha256sum" if hashed else "-o /dev/null"
        self.child = subprocess.Popen(
            f"set -o pipefail; curl -sS --max-time 120 -w '{report}' '{url}' {sink}",
            shell=True, executable="/bin/bash", env=work.env(), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def result(self):
        self.sum, report = self.child.communicate()
        try:
            self.status, self.size, first = report.split()
            self.first_byte = float(first)
        except ValueError:
            raise Failed(f"curl: status {self.child.returncode}: {report.strip()}") from None
        return self

    def check(self, digest, size=images.BIG_BYTES):
        if (self.child.returncode, self.status, int(self.size)) != (0, "200", size):
            raise Failed(f"curl: status {self.child.returncode}, HTTP {self.status}, {self.size} of {size} bytes")
        if self.hashed and f"sha256:{self.sum.split()[0]}" != digest:
            raise Failed(f"a client got sha256 {self.sum.split()[0]}, not {digest}")


# --- time to first byte ---


def first_byte(bench):
    """Of the blobs of the 40-layer image, one after the other: directly from the
    upstream, cold through Larder, hot through Larder."""
    times = {"direct": [], "cold": [], "hot": []}
    truth = bench.truth["forty"]
    path = f"library/{truth.name}/blobs"
    try:
        bench.larder.start_empty("first-byte")
        for digest in truth.layers:
            for way, base in (("direct", f"{bench.upstream.port}/v2"),
                              ("cold", f"{bench.larder.port}/v2/docker.io"),
                              ("hot", f"{bench.larder.port}/v2/docker.io")):
                answer = Curl(bench.work, f"http://127.0.0.1:{base}/{path}/{digest}", hashed=True).result()
                answer.check(digest, int(answer.size))
                times[way].append(answer.first_byte)
        medians = ", ".join(f"{way} {milli(statistics.median(taken))}" for way, taken in times.items())
        bench.ok("first-byte", f"{len(truth.layers)} blobs, all digests right")
        bench.figures.append(f"time to first byte, median of {len(truth.layers)} blobs: {medians}")
    finally:
        stop_all([bench.larder], bench)


# --- the report ---


def milli(seconds):
    return f"{seconds * 1000:.1f} ms"


def in_words(measure):
    traffic = measure.traffic
    return (f"upstream saw {traffic.head_manifests} HEAD and {traffic.manifests.total()} GET of manifests, "
            f"{traffic.blobs.total()} GET of blobs, {traffic.head_blobs + traffic.other} other, "
            f"{traffic.bytes / MIB:.1f} MiB; {measure.seconds:.1f} s")


def report(bench):
    head = ("client", "phase", "HEAD man.", "GET man.", "HEAD blob", "GET blob", "other",
            "bytes upstream", "seconds", "Larder peak", "result")
    lines = [head] + [table_row(measure) for measure in bench.rows]
    widths = [max(len(str(line[column])) for line in lines) for column in range(len(head))]
    print("\nUpstream requests, from the upstream's access log:\n")
    for line in lines:
        cells = [str(cell).ljust(width) if column < 2 else str(cell).rjust(width)
                 for column, (cell, width) in enumerate(zip(line, widths))]
        print("  ".join(cells).rstrip())
    print()
    for line in bench.figures:
        print(line)


def table_row(measure):
    traffic = measure.traffic
    return (measure.who, measure.phase, traffic.head_manifests, traffic.manifests.total(), traffic.head_blobs,
            traffic.blobs.total(), traffic.other, traffic.bytes,
            f"{measure.seconds:.1f}" if measure.seconds else "-", f"{measure.peak / MIB:.1f} MiB", measure.result)


# --- case -> (what runs it, images it needs, commands it needs) ---


def client_case(kind):
    return phases_of(kind), set(kind.pulls), set(kind.tools)


CASES = {kind.label: client_case(kind)
         for kind in (Dockerd, BuildKit, Containerd, ContainerdNs, Podman, PodmanMirror, Skopeo, SkopeoTags, Plain, PlainAlias)}
CASES |= {
    "ttl": (trusted_tags, {"forty"}, {"skopeo"}),
    "ten": (ten_at_once, {"forty", "debian"}, {*Dockerd.tools, *Containerd.tools, "podman", "skopeo"}),
    "big": (crowd_on_one_blob, {"big"}, {"curl"}),
    "login": (login, {"forty"}, {*Dockerd.tools, *Containerd.tools, "podman", "skopeo"}),
    "nginx": (nginx, {"forty", "big"}, {"nginx", "openssl", "curl", *Dockerd.tools, *Containerd.tools, "podman", "skopeo"}),
    "haproxy": (haproxy, {"forty"}, {"haproxy", "curl"}),
    "acme": (acme, {"forty"}, {"pebble", "pebble-challtestsrv", "openssl", "curl", "skopeo"}),
    "doctor": (doctor, set(), {*Dockerd.tools, *Containerd.tools, "podman", "skopeo"}),
    "first-byte": (first_byte, {"forty"}, {"curl"}),
    "bundle": (air_gap, {"multi", "forty", "zstd", "debian"},
               {*Dockerd.tools, *Containerd.tools, "podman", "skopeo", "umoci", "zstd"}),
}
IMAGE_TOOLS = {"debian": {"debootstrap"}, "zstd": {"zstd"}}


def arguments():
    parser = argparse.ArgumentParser(
        prog="tests/clients/run",
        description="Real clients pull real images through Larder. LARDER names the program; "
                    "without it a release build of this tree is made. Exit status 0: everything passed.")
    parser.add_argument("case", nargs="*", help="only these: " + " ".join(CASES))
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder, and say where it is")
    given = parser.parse_args()
    unknown = [case for case in given.case if case not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}; there are: {' '.join(CASES)}")
    return given.case or list(CASES), given.keep


def commands_of(case):
    _, names, commands = CASES[case]
    return commands.union(*(IMAGE_TOOLS.get(name, set()) for name in names))


def run_cases(bench, chosen):
    commands = {"docker-registry"}.union(*map(commands_of, chosen))
    absent = tools.install(commands)
    tools.versions(commands)
    if "docker-registry" in absent:
        raise Failed("docker-registry could not be installed, and without an upstream there is nothing to try")
    able = []
    for case in chosen:
        lacking = commands_of(case) & absent
        if lacking and lacking <= tools.OPTIONAL:
            bench.not_run.append(case)
            print(f"not run: {case}, for want of {' '.join(sorted(lacking))}", flush=True)
        elif lacking:
            bench.fail(case, f"not tried, could not be installed: {' '.join(sorted(lacking))}")
        else:
            able.append(case)
    wanted = set().union(*(CASES[case][1] for case in able))
    bench.fill([name for name in images.BUILDERS if name in wanted])
    for case in able:
        with bench.reported(case):
            CASES[case][0](bench)


def main():
    chosen, keep = arguments()
    exit_on_signals()
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian keeps dockerd and debootstrap
    begun = time.monotonic()
    try:
        path = binary()
    except (Failed, OSError, subprocess.CalledProcessError) as problem:
        sys.exit(f"tests/clients/run: no larder to try: {problem}")
    work = Work(keep)
    bench = Bench(work, path)
    finished = False
    try:
        run_cases(bench, chosen)
        report(bench)
        finished = True
    except Failed as failure:
        bench.fail("the run itself", failure)
    finally:
        good = finished and not bench.failures
        work.close(good)
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    if good:
        ran = [case for case in chosen if case not in bench.not_run]
        print(f"all passed: {' '.join(ran)}; {minutes} min {seconds} s"
              + "".join(f"; not run: {case}" for case in bench.not_run))
    else:
        print(f"{len(bench.failures)} failed: {'; '.join(bench.failures)}; {minutes} min {seconds} s")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
