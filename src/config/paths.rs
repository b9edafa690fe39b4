//! Paths as the operator means them: `~`, relative ones, the cache folder when none is given.

use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::error::Place;

/// Where relative paths start.
pub struct Paths<'a> {
    pub environment: &'a Environment,
    /// The folder of the configuration file; `None` without one.
    pub file_dir: Option<PathBuf>,
}

impl Paths<'_> {
    /// `~` and `~/…` start at home; what else is relative starts at the configuration file's folder if it
    /// stands in the file, and at the current folder if it stands in a variable.
    pub fn resolve(&self, text: &str, place: &Place) -> Result<PathBuf, String> {
        if text.is_empty() || text.contains(['\0', '\u{fffd}']) {
            return Err("expected a path".to_owned());
        }
        if let Some(rest) = text.strip_prefix('~') {
            let below = match rest.strip_prefix('/') {
                Some(below) => below,
                None if rest.is_empty() => "",
                None => return Err("expected ~/… for the home folder of the user who runs Larder".to_owned()),
            };
            let home = self.environment.home.as_ref();
            let home = home.ok_or("there is no home folder ($HOME) to start from; expected an absolute path")?;
            return Ok(home.join(below.trim_start_matches('/')));
        }
        let base = match (place, &self.file_dir) {
            (Place::File { .. }, Some(dir)) => dir,
            _ => &self.environment.cwd,
        };
        Ok(base.join(text))
    }

    /// The cache folder that nobody chose: systemd's, else one in the home folder.
    pub fn default_cache(&self) -> Result<PathBuf, String> {
        // systemd separates several folders by colons; the first is the unit's own.
        let state = self.environment.get("STATE_DIRECTORY");
        if let Some(first) = state.and_then(|list| list.split(':').find(|dir| Path::new(dir).is_absolute())) {
            return Ok(PathBuf::from(first));
        }
        let home = self.environment.home.as_ref();
        home.map(|home| home.join(".cache/larder")).ok_or_else(|| {
            "there is neither $STATE_DIRECTORY nor a home folder ($HOME) to keep the cache in; set cache.path"
                .to_owned()
        })
    }
}

/// Whether Larder can read this file; says why not.
pub fn check_readable(path: &Path) -> Result<(), String> {
    let meta = std::fs::metadata(path).map_err(|e| format!("cannot read {}: {}", path.display(), reason(&e)))?;
    if !meta.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    std::fs::File::open(path)
        .map(|_| ())
        .map_err(|e| format!("cannot read {}: {}", path.display(), reason(&e)))
}

/// Whether users other than owner and group may read it (R-X17).
pub fn readable_by_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

/// The operating system's words without its number.
pub fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}
