//! Larder: a pull-through caching proxy registry for container images and every other OCI artifact.
//!
//! # Floors
//!
//! Bottom first; a floor imports only what its row names. `tests/architecture.rs` holds this table and checks it.
//!
//! | floor | what it is | may import |
//! |---|---|---|
//! | [`text`] | text from outside, made fit to be shown; for all floors | – |
//! | [`oci`] | the specification's nouns, parsed: digest, name, reference, manifest, error codes | – |
//! | [`telemetry`] | log set-up, metrics, traces | – |
//! | [`events`] | what happened, as data, and its broadcast | oci |
//! | [`config`] | what the operator asked for: raw figures in, meaning out | oci |
//! | [`store`] | bytes by digest; tags, links, recency | oci config telemetry events |
//! | [`upstream`] | a client of other registries | oci config telemetry |
//! | [`acme`] | the proxy's own certificate: ordered, kept, renewed | config store upstream |
//! | [`auth`] | who is asking, what they may pull | oci config |
//! | [`pull`] | the pull-through service | oci config telemetry events store upstream |
//! | [`bundle`] | images as files: export and import, without the network | oci telemetry store |
//! | [`jobs`] | hashing what is held again, in idle hours and when asked; fetching images ahead; the audit log, webhooks | oci config telemetry events store pull |
//! | [`admin`] | what an operator may ask of a running proxy, or of a folder at rest | oci config events store pull bundle jobs |
//! | [`http`] | listeners, routes, status codes | oci config telemetry events acme auth pull admin, and the error types of store and upstream |
//! | [`app`] | the composition root: builds everything once, runs it, stops it | all above |
//! | [`demo`] | a tour without the internet: an upstream, a proxy and clients in one process | oci config app |
//! | [`cli`] | from the command line to the floors below, or to the admin API of a running proxy | config bundle auth admin app demo telemetry |
//!
//! Beside the floors, built for tests and fuzzers only: `fuzzing` lists the harnesses that each floor has in a file called
//! `fuzz.rs`, one for each parser of bytes from outside. They may look anywhere.
//!
//! `store` has never heard of registries; `upstream` has never heard of disks; only `http::error` turns an error into
//! a status; only `store::keys` builds paths on disk; a digest is verified in exactly one place, `store::writer`;
//! only [`text`] knows which characters are not shown as they are.
//!
//! # Walks
//!
//! - **Manifest by tag**: `http::v2::route` parses path and query once → `http::v2::manifests` → `pull::manifest`: the
//!   tag's record × what of it is held × now × policy → `pull::freshness` says Fresh, Revalidate or Fetch → store, or one
//!   question for all who ask (`pull::single`): HEAD, then GET by digest only if that is not held, also for a client's HEAD if something
//!   older is. A HEAD that may have been refused only as a HEAD is followed by a GET (`upstream::heads`). If it fails, what is
//!   held is served stale. A tag that is new or has moved is on disk before it is answered; a hot one touches neither
//!   disk nor database.
//! - **What was told before**: `http::v2::hot` finds the head of an earlier answer under the same path; `pull::hot` says,
//!   from memory and without waiting, whether what it speaks of is held, linked and fresh at this moment; then it is told
//!   again. Otherwise the walk above. Hot manifests and blobs, `HEAD` of them and `/v2/` go this way.
//! - **Who may**: `http::v2::door` makes an identity of header and certificate (`auth::Gate`: `basic`, `bearer`, `jwks`), once for
//!   each request, and a right of identity, place and image (`auth::policy`) before anything is told, hot or not. Where that
//!   depends on whether the repository needs credentials, `pull::privacy` knows, or asks the upstream once as nobody. A right to
//!   what is held makes the target as good as offline. `/v2/_token` (`http::v2::token`) makes a login a token, and refuses
//!   a wrong one unless everything that is asked for is for everybody.
//! - **Behind a proxy**: `http::server::proxy_header` reads a PROXY header, if a connection begins with one; what it says goes with the
//!   connection. A request's headers are read by `http::forwarded`. Whose word counts is decided for each request, by the
//!   door's `TrustedProxies` (`http::server::Caller`), before its line of the log begins: log, rules, logins and limits see the
//!   client, and its host in place of the proxy's. The server counts connections and requests by the same function.
//! - **A claim is not proof**: what is held, or coming, for other repositories only → `pull::proof`: the repositories that have
//!   shown it (links) × what is known of their privacy → a HEAD suffices (public), the registry itself has to confirm (one
//!   upstream), or the bytes have to come: then it is a miss, with a transfer and a staged file of its own, and of two copies
//!   the store keeps the first.
//! - **Login**: `auth::basic` looks whether the pair of name and password is remembered as right or wrong → else it
//!   waits for its turn (`auth::login_turns`) in the queue of its client's address; `auth::login_queue` decides,
//!   purely, whose turn it is, from fair queues and a budget of processor time for wrong logins → bcrypt on a
//!   blocking thread → remembered, answered. Refusals that cost no hash are paced by the client's address;
//!   `auth::wrong_logins` says which of them are logged.
//! - **Text from outside** (what a registry, a client or a bundle wrote): cut to an excerpt where it enters an
//!   error ([`text::excerpt`]) → written out and bounded once more where it leaves: `http::error`, `telemetry::log`,
//!   the command line.
//! - **Lists**: `http::v2::tags` and `referrers` → `pull::lists`: the record × now × policy, as for a tag → one question for all who
//!   ask: `upstream::items` reads the items out of each page as its bytes come, and they go as lines into the store's spool (memory,
//!   then a file; long ones take turns) → `store::lists` puts them in order and in their place, within a budget. A page is a binary
//!   search over the file (`store::lines`), an answer is written from it piece by piece (`http::v2::listed`). No list is whole in memory.
//! - **Blob, cold**: `http::v2::blobs` → `pull::blob` → `pull::flight`: the transfer is a task of its own
//!   (`pull::transfer`), which gathers what comes fast; it stages through `store::writer`, which hashes beside the writing;
//!   every client, the first included, reads the growing file (`pull::body`), and the first MiB before the file has it
//!   (`pull::flight`'s front); the last 16 KiB of every response wait for the verdict; commit = digest right → fsync → rename →
//!   index → links. A blob of up to 64 KiB is hashed where it comes, told, and written by its commit.
//! - **Blob, hot**: link check and size from memory → a file that is open still (`store::opened`), or one that is opened off
//!   the async threads → range → body; by plain HTTP/1.1 the body hands out tickets for runs of the file (`http::outbox`), which
//!   the socket's side (`http::server::wire`) sends by `sendfile`, in turns with other connections. A run that the kernel has
//!   let go of is brought back first (`pull::recall`), the next one while it is sent. By TLS and HTTP/2 it is read in chunks
//!   (`pull::chunk`), which are small until the client has shown that it takes them quickly.
//! - **An answer's end**: hyper lets go of a body long before a slow client has it. So body and pieces hold a `http::server::delivery`;
//!   when the last is gone and flushed, the connection's `pulse` has the access log write its line and may call itself idle. A connection
//!   that ends, by a stop or a reload too, waits until the client has acknowledged what the kernel holds for it (`wire`), then sends FIN.
//! - **A slow upstream**: a client waits 20 s in all (`pull::client_wait`) and is told to come back; what it asked is a task of its own, with
//!   `answer_timeout` to be answered (`upstream::ask`, and `upstream::late`, which bounds how many take that long). Whoever asks again joins it. A
//!   late answer is kept for a moment (`pull::single`), a late transfer is finished or kept running (`pull::flight`).
//!   A question that has not been sent yet, for want of a connection (`upstream::queue`), is given up a while after its last client left.
//! - **In a circle**: `http::v2` reads `Via` (`upstream::via`): a request that has been here is answered 508; the names of other Larders go
//!   with the task, and with the questions and transfers that it begins, to `upstream::transport`.
//! - **Blob, far**: where one connection is slow, `pull::transfer::plan` has parts of the blob fetched ahead by others as
//!   long as each makes it faster (`pull::transfer::ahead`); the pour takes them in their order, and all behind it is the same.
//! - **Why it failed**: the client's chain of errors becomes one sentence (`upstream::reason`; `text::os_error` for the disk's) → the error of
//!   each floor → `http::error` puts it on the answer beside its status (`http::labels::Cause`) → the access log's line (`http::access_log`). A
//!   body that breaks off brings its own; what Larder cuts is told by the connection's `pulse`.
//! - **Upstream**: `upstream::client` → the addresses in their order (`upstream::ask`): mirrors that are up by `upstream::address`, each for as
//!   long as that says, then the registry → token (one request for many waiters) → request → redirects by hand, each target
//!   checked when it is dialled → answer, or an error that says whose fault it is and whether to try again. What failed everywhere waits for its
//!   repeat together with others (`upstream::retry`); what is down is probed in the background (`upstream::probe`).
//! - **Tour**: `cli::demo` → `demo`: a market of its own (`demo::upstream`) → [`app::start`] in front of it → stations
//!   (`demo::tour`) that pull over HTTP (`demo::client`), measure on both sides and check each claim.
//! - **Figures of an hour and a day**: `admin::recent` is given a sample of the counters once a minute (`app`); what was counted since then is the
//!   difference. Requests only count.
//! - **Operators**: `cli::desk` finds the proxy by its admin address, or opens the folder when none runs; either way
//!   [`admin`] answers with the same views. Over HTTP, `http::admin` is between them, and only there are routes and
//!   status codes.
//! - **Who may operate**: at its start (and at a reload) `app::api_token` takes the configured token, or has one made and written for each admin
//!   port (`admin::token`, in a folder of `config::token_places`). A command finds address and token (`app::admin_address`)
//!   by the configuration, by what is left of one that is refused (`config::AdminPart`), or without any; by its token file, a
//!   proxy whose port an option chose. It keeps the token from other machines and users; `http::access` refuses other sites' pages, then compares the token, or asks
//!   the kernel whose process is at the other end of a Unix socket. Without any token the API is closed; health and
//!   metrics (`http::ops`) are open.
//! - **What is hardly meant**: `cli::check_config` → `app::review`: variables that cover keys, the disk and the paths
//!   of this machine, rules that match nobody or never match.
//! - **Checkup**: `cli::doctor` → `app::checkup`: a topic a file, each answering with findings (level, what was found, what to
//!   do); upstreams are asked at their door (`upstream::greet`) by clients made as the proxy's own are. Files of clients become the
//!   requests that those would send (`checkup::pulls`), read as requests are (`http::v2::meaning`).
//! - **Canary**: `cli::doctor::pull` has the proxy make an image (`http::admin` → `pull::canary`, in memory) → runs the client's own pull →
//!   `http::v2::canary` answers and notes it, and asks no upstream → the notes say whether it came, and for which upstream.
//! - **Rot**: `jobs::idle` hashes what is held, slowly and when nobody needs the disk; `jobs::verify` at once, when an
//!   operator asks. What is damaged is put aside in the store's quarantine and fetched again: when a client asks for
//!   it, or at once if repair was asked for.
//!   What cannot be read at the moment is neither: `Store::open_blob` and `Store::check` say so (`store::disk` knows which errors are
//!   damage), and `pull` lets the upstream's bytes pass through without keeping them, or refuses for a moment.
//! - **A damaged index**: `store::recovery` opens it under a guard (`store::guard`: a panic of redb is damage), has every page's checksum
//!   compared beside its being read (`store::proof`), and puts it aside if anything is wrong. Another is built from the copy
//!   (`store::copy`; `store::relief` makes room on a full disk) and renamed into its place; `store::startup` then finds what has come since. The copy is written from one read
//!   transaction, daily, at the end and after pins (`app` asks every few seconds whether it is due).
//! - **A folder that was emptied**: `Store::probe`, every few seconds, or a writer that finds no folder →
//!   `store::place` says whether it may be written to (a mount point without its file system may not) → `store::mend`
//!   makes folders and lock again → on a thread beside that: what is gone is forgotten, the index is written anew from
//!   its open file, and copied.
//! - **Another configuration**: `cli::serve` hears SIGHUP or `larder reload` (`http::admin`), or sees another file → `app::reload` does what can
//!   fail (clients, users, certificates; `app::listeners` binds) and changes nothing; then each listener's `http::v2` door is hung anew,
//!   with the names and clients of `pull` (`View`) and the rules of `auth` behind it; then sockets, limits, schedules, audit log. A
//!   request takes its door once, without a lock, and goes by it to its end: by its target it carries the client that asks for it,
//!   and joins no question of another configuration, nor, unless its registry confirms it, a transfer that other credentials began. What `http::v2::hot` told under an earlier one is not told again.
//! - **Lent credentials**: `upstream::credentials` → `upstream::lease`, which keeps what a helper (`upstream::helper`) or a cloud
//!   (`upstream::cloud`) gives out, one question for all who wait; again before it ends, and once when a registry refuses it.
//! - **Traces**: `http::traced` makes a request a span, if it is to be recorded; those of its transfer (`pull::flight`) and of each
//!   exchange (`upstream::transport`) find it through the task (`telemetry::trace`). What has ended goes through a bounded queue to
//!   the collector, by a client that `app::traces` makes.
//! - **Its own certificate**: [`acme`] looks at what is kept (`store::State`) and says when another is due; an order goes by
//!   `acme::directory` to the one host that the operator named; `http::server::tls` (or `http::challenge`) answers the authority that looks,
//!   out of [`acme::Issued`], which every handshake of such a listener reads. What fails leaves the one of before.
//! - **Audit**: `store` (evictions, imports), `pull` (fetches), `admin` (an operator's doing) and `http` (pulls, refusals) note what they did in
//!   [`events`], without waiting; `jobs::audit` writes it down.
//! - **Webhooks**: the same events → one thread that says whom each is for and puts it into those hooks' queues on disk
//!   (`store::queue`) → for each hook a task (`jobs::webhook::delivery`) that signs and sends batches and judges the answers. The
//!   way to the endpoint is brought by `app::hooks`: `upstream::courier`.
//! - **Bundle, out**: `cli::bundle` orders it at the desk → `bundle::select` says what the images need and hold →
//!   `bundle::plan` writes the catalogue → `bundle::create` streams the archive, hashing what it reads → `bundle::seal`
//!   signs and cuts it into files, on the machine of whoever asked: the key goes nowhere.
//! - **Bundle, in**: `bundle::import` reads the catalogue, asks whom it is from, and takes from then on only what that
//!   names → `store::writer` → blobs that are linked to nobody; at the end image by image is shown (`store::reveal`):
//!   links, tag and pin in one durable step, or nothing.
//! - **Lists of others**: `larder prefetch --from` → `cli::lists`: the file's text → a tree for each document (`yaml`, also of JSON) →
//!   what each is (`documents`) → who reads it (`kubernetes`, `compose`, `tools`) → images that are fetched, possible ones, and what
//!   is named and was not read: that is shown, and makes the exit status 1.
//! - **Archives of other tools, in**: `cli::bundle` → `bundle::foreign` looks through a folder or a tar
//!   (`bundle::unpack` undoes its compression, within limits), decides what is taken and lists what is not, and
//!   passes it on as a bundle nobody signed.
//! - **Ahead**: `cli::prefetch` or a schedule → `jobs::prefetch`: lines ([`config::wanted`]) → tags → for each image a plan:
//!   manifest, those of the wanted platforms, what refers to them → blobs by `pull`, as clients get them → all of it held, or
//!   the reason why not. Who asks is told of each step (`jobs::prefetch::progress`).
//! - **A miss offline**: `http::v2` → 404 that says when the mirror was filled → `pull::wishes`: which image it is part of →
//!   `store::wishes`; an operator takes the list to where it can be fetched.
//! - **Room**: what is announced is held against what could ever be free (`store::space`), and evicts nothing; as the bytes come,
//!   `store::writer` reserves room for them and some ahead (`store::reservation`); `store::index` says what was used least
//!   recently; it is unlinked; open readers keep their handle. A transfer that finds no more room goes on through memory
//!   (`pull::sink`).
//! - **A mirror that lies**: whoever verifies (`upstream::ask` the head, `pull::transfer` a blob, `pull::manifest` a manifest) reports the
//!   address to `upstream::distrust`, which every question to a mirror is held against, and asks again: the next address answers in the
//!   same request, as long as nobody has seen a byte (`pull::transfer::sources` knows whose bytes are staged). The registry has the last word.
//! - **A cut**: `pull::transfer` asks for what is missing by Range; one that is refused, in whatever way, is followed by a request
//!   for the whole blob, of which what is here is left out; only that one's answer is a verdict.

pub mod acme;
pub mod admin;
pub mod app;
pub mod auth;
pub mod bundle;
pub mod cli;
pub mod config;
pub mod demo;
pub mod events;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod jobs;
pub mod oci;
pub mod pull;
pub mod store;
pub mod telemetry;
pub mod text;
pub mod upstream;
