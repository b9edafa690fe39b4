//! Resources that the process uses, under the names that Prometheus' client libraries use, and when certificates expire: text that is written
//! at each scrape, since these figures are the moment's, and one of them is no whole number, which the recorder's counters are.
//!
//! Nothing here opens a file where that can be helped: the figures matter most when no file descriptors are left.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::metrics::{Kind, Metric};

const fn metric(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

const CPU: Metric = metric(
    "process_cpu_seconds_total",
    Kind::Counter,
    &[],
    "Processor time that the process has used, user and system, in seconds.",
);
const START: Metric = metric(
    "process_start_time_seconds",
    Kind::Gauge,
    &[],
    "When the process was started, Unix time.",
);
const OPEN_FDS: Metric = metric("process_open_fds", Kind::Gauge, &[], "Open file descriptors.");
const MAX_FDS: Metric = metric(
    "process_max_fds",
    Kind::Gauge,
    &[],
    "File descriptors that the process may have open.",
);
const RESIDENT: Metric = metric(
    "process_resident_memory_bytes",
    Kind::Gauge,
    &[],
    "Memory of the process that is in RAM.",
);
const VIRTUAL: Metric = metric(
    "process_virtual_memory_bytes",
    Kind::Gauge,
    &[],
    "Address space of the process.",
);
const CERTIFICATE: Metric = metric(
    "larder_certificate_expires_timestamp_seconds",
    Kind::Gauge,
    &["role", "key", "file"],
    "When what a file of certificates is for ends, Unix time: the first certificate of a chain to expire, the last of the authorities.",
);

/// All metrics that are written here.
pub const METRICS: &[Metric] = &[CPU, START, OPEN_FDS, MAX_FDS, RESIDENT, VIRTUAL, CERTIFICATE];

/// Use of a certificate in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateRole {
    /// Shown to clients by a listener.
    Server,
    /// Shown to an upstream by Larder.
    Client,
    /// Authorities whose certificates are trusted.
    Authority,
}

impl CertificateRole {
    pub fn as_str(self) -> &'static str {
        match self {
            CertificateRole::Server => "server",
            CertificateRole::Client => "client",
            CertificateRole::Authority => "authority",
        }
    }
}

/// When a file's certificates expire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateExpiry {
    pub role: CertificateRole,
    /// The key of the configuration that names the file.
    pub key: String,
    pub file: String,
    /// Unix seconds.
    pub not_after: i64,
}

/// The certificates that are shown; whoever reads the files sets them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Certificates(Arc<RwLock<Vec<CertificateExpiry>>>);

impl Certificates {
    pub fn set(&self, all: Vec<CertificateExpiry>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// Appends their metric to a text in the Prometheus format.
    pub fn write(&self, text: &mut String) {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            return;
        }
        head(text, &CERTIFICATE);
        for certificate in all.iter() {
            let (role, key, file) = (certificate.role.as_str(), &certificate.key, &certificate.file);
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "{}{{role=\"{role}\",key=\"{}\",file=\"{}\"}} {}",
                CERTIFICATE.name,
                escaped(key),
                escaped(file),
                certificate.not_after
            );
        }
    }
}

/// A label's value in the Prometheus text format.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn head(text: &mut String, metric: &Metric) {
    let _ = writeln!(text, "# HELP {} {}", metric.name, metric.help);
    let _ = writeln!(text, "# TYPE {} {}", metric.name, metric.kind.as_str());
}

/// The commit that the program was built from, where `deploy/build` knew.
const COMMIT: &str = match option_env!("LARDER_COMMIT") {
    Some(commit) if !commit.is_empty() => commit,
    _ => "unknown",
};

/// Notes the time and the build, and opens what is read at each scrape while there are file descriptors: call it at the start of the
/// process, when there is a recorder.
pub fn begin() {
    let _ = started();
    let _ = memory_file();
    metrics::gauge!("larder_build_info", "version" => env!("CARGO_PKG_VERSION"), "commit" => COMMIT).set(1.0);
}

/// Appends the process's figures to a text in the Prometheus format; those that this system does not tell are left out.
pub fn write(text: &mut String) {
    let mut one = |metric: &Metric, value: Option<&dyn fmt::Display>| {
        let Some(value) = value else { return };
        head(text, metric);
        let _ = writeln!(text, "{} {value}", metric.name);
    };
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    one(&CPU, Some(&cpu));
    one(&START, Some(&started()));
    let open = open_fds();
    one(&OPEN_FDS, open.as_ref().map(|open| open as &dyn fmt::Display));
    // Without a limit there is none to compare with.
    let most = getrlimit(Resource::Nofile).current;
    one(&MAX_FDS, most.as_ref().map(|most| most as &dyn fmt::Display));
    let memory = memory();
    one(
        &RESIDENT,
        memory.as_ref().map(|(resident, _)| resident as &dyn fmt::Display),
    );
    one(&VIRTUAL, memory.as_ref().map(|(_, all)| all as &dyn fmt::Display));
}

/// Unix time in seconds.
fn started() -> f64 {
    static STARTED: OnceLock<f64> = OnceLock::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH);
    *STARTED.get_or_init(|| now().map_or(0.0, |now| now.as_secs_f64()))
}

/// `None` where the system does not tell.
fn open_fds() -> Option<u64> {
    const FOLDER: &str = "/proc/self/fd";
    // From Linux 6.2 on the folder's size is their number, which takes no descriptor.
    match std::fs::metadata(FOLDER).ok()?.size() {
        // The one that reads the folder is not counted.
        0 => Some((std::fs::read_dir(FOLDER).ok()?.count() as u64).saturating_sub(1)),
        count => Some(count),
    }
}

/// Kept open.
fn memory_file() -> Option<&'static File> {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    FILE.get_or_init(|| File::open("/proc/self/status").ok()).as_ref()
}

/// Bytes in RAM, and of address space; `None` where the system does not tell.
fn memory() -> Option<(u64, u64)> {
    let mut buffer = [0; 4096];
    let len = memory_file()?.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(&buffer[..len]).ok()?;
    Some((status_bytes(text, "VmRSS:")?, status_bytes(text, "VmSize:")?))
}

/// Reads the bytes of a line as `VmRSS: 11308 kB`.
fn status_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(text: &str, name: &str) -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_is_measured() {
        begin();
        let mut text = String::new();
        write(&mut text);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let started = figure(&text, "process_start_time_seconds");
        assert!(started <= now && started > now - 86_400.0, "{text}");
        let (resident, all) = (
            figure(&text, "process_resident_memory_bytes"),
            figure(&text, "process_virtual_memory_bytes"),
        );
        assert!(resident > 500_000.0 && resident <= all, "{text}");
        // Other tests open and close files meanwhile: so many that it shows.
        let files: Vec<File> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        let open = figure(&text, "process_open_fds");
        let mut later = String::new();
        write(&mut later);
        assert!(figure(&later, "process_open_fds") >= open + 50.0, "{text}\n{later}");
        assert!(figure(&later, "process_open_fds") <= figure(&later, "process_max_fds"));
        assert!(figure(&later, "process_cpu_seconds_total") >= figure(&text, "process_cpu_seconds_total"));
        assert!(figure(&later, "process_cpu_seconds_total") > 0.0);
        drop(files);
        for metric in &METRICS[..6] {
            assert!(text.contains(&format!("# TYPE {} {}\n", metric.name, metric.kind.as_str())));
        }
    }

    #[test]
    fn certificates_are_told_until_others_are_set() {
        let certificates = Certificates::default();
        let text = || {
            let mut text = String::new();
            certificates.write(&mut text);
            text
        };
        assert_eq!(text(), "");
        certificates.set(vec![CertificateExpiry {
            role: CertificateRole::Server,
            key: "server.tls.cert".to_owned(),
            file: "/etc/a \"b\"\\\n.pem".to_owned(),
            not_after: 1_900_000_000,
        }]);
        let line = r#"larder_certificate_expires_timestamp_seconds{role="server",key="server.tls.cert",file="/etc/a \"b\"\\\n.pem"} 1900000000"#;
        assert_eq!(text().lines().nth(2), Some(line));
        certificates.set(Vec::new());
        assert_eq!(text(), "");
    }

    #[test]
    fn lines_of_the_system_are_read() {
        let text = "VmPeak:\t  22 kB\nVmSize:\t   11308 kB\nVmRSS:\t 7 kB\nVmData: many kB\n";
        assert_eq!(status_bytes(text, "VmSize:"), Some(11308 * 1024));
        assert_eq!(status_bytes(text, "VmRSS:"), Some(7 * 1024));
        assert_eq!(
            (status_bytes(text, "VmData:"), status_bytes(text, "VmSwap:")),
            (None, None)
        );
    }
}
