//! Who made a bundle: ed25519 signatures over its catalogue, as `minisign` makes and reads them.

use std::fs::{File, OpenOptions};
use std::io::{Cursor, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minisign::{KeyPair, SecretKeyBox, SignatureBox};

use super::error::BundleError;
use crate::oci::Digest;

/// Keys and signatures are a few lines.
const MAX_BYTES: u64 = 16 << 10;

/// Whose signatures count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(minisign::PublicKey);

impl PublicKey {
    /// From a `.pub` file's text or from its second line alone.
    pub fn parse(text: &str) -> Result<PublicKey, BundleError> {
        let line = text
            .lines()
            .map(str::trim)
            .rfind(|line| !line.is_empty())
            .unwrap_or_default();
        minisign::PublicKey::from_base64(line).map(PublicKey).map_err(|_| {
            let shown: String = line.chars().take(60).collect();
            BundleError::Key(format!(
                "{shown:?} is no public key: expected the line of a .pub file that begins with RW"
            ))
        })
    }

    pub fn read(path: &Path) -> Result<PublicKey, BundleError> {
        let text = read_small(path)?;
        PublicKey::parse(&text).map_err(|error| BundleError::Key(format!("{}: {error}", path.display())))
    }

    /// As minisign shows it, and as [`PublicKey::parse`] reads it.
    pub fn to_text(&self) -> String {
        self.0.to_base64()
    }
}

/// A key to sign with. Never shown.
pub struct SecretKey(minisign::SecretKey);

impl SecretKey {
    /// From a file of `larder bundle keygen` or `minisign -G`. `password` for a key that has one.
    pub fn read(path: &Path, password: Option<String>) -> Result<SecretKey, BundleError> {
        let bad = |why: String| BundleError::Key(format!("{}: {why}", path.display()));
        let parse = || SecretKeyBox::from_string(&read_small(path).unwrap_or_default());
        read_small(path)?;
        let plain = parse().and_then(SecretKeyBox::into_unencrypted_secret_key);
        let key = match (plain, password) {
            (Ok(key), _) => Ok(key),
            (Err(_), Some(password)) => parse().and_then(|text| text.into_secret_key(Some(password))),
            (Err(error), None) => {
                return Err(bad(format!(
                    "it is no secret key, or one with a password ({error}): for that set LARDER_BUNDLE_PASSWORD"
                )));
            }
        };
        key.map(SecretKey).map_err(|error| bad(error.to_string()))
    }

    /// A signature over a catalogue. No two are the same: there is noise in each, as in all of rust-minisign's.
    pub fn sign(&self, catalog: &[u8]) -> Result<String, BundleError> {
        let trusted = format!("larder bundle {}", Digest::sha256(catalog));
        let comment = "signature of a larder bundle's catalogue";
        minisign::sign(None, &self.0, Cursor::new(catalog), Some(&trusted), Some(comment))
            .map(SignatureBox::into_string)
            .map_err(|error| BundleError::Signature(format!("the catalogue cannot be signed: {error}")))
    }
}

/// Which of the trusted keys signed the catalogue. Errors: none of them did.
pub fn verify(catalog: &[u8], signature: &[u8], trusted: &[PublicKey]) -> Result<PublicKey, BundleError> {
    let text = std::str::from_utf8(signature).ok().filter(|text| is_whole(text));
    let signature = text.and_then(|text| SignatureBox::from_string(text).ok());
    let signature = signature.ok_or_else(|| BundleError::Signature("its signature cannot be read".to_owned()))?;
    let fits = |key: &&PublicKey| {
        // Prehashed only: what minisign has made since 2018.
        minisign::verify(&key.0, &signature, Cursor::new(catalog), true, false, false).is_ok()
    };
    trusted.iter().find(fits).cloned().ok_or_else(|| {
        let by = signature
            .keynum()
            .iter()
            .rev()
            .map(|b| format!("{b:02X}"))
            .collect::<String>();
        let known = trusted.iter().any(|key| key.0.keynum() == signature.keynum());
        BundleError::Signature(match known {
            true => format!("the catalogue is not what key {by} signed: it was changed or damaged"),
            false => format!(
                "it is signed by key {by}, which is none of the {} trusted ones",
                trusted.len()
            ),
        })
    })
}

/// True if the second signature, over the trusted comment, has its 64 bytes. The library takes that for granted and panics where
/// the first one is right and this one was cut.
fn is_whole(text: &str) -> bool {
    let line = text.lines().nth(3).unwrap_or_default();
    STANDARD.decode(line.trim()).is_ok_and(|bytes| bytes.len() == 64)
}

/// Makes a pair of keys: `path`, for its owner alone, and `path.pub`. Errors: one of them exists.
pub fn keygen(path: &Path) -> Result<(PathBuf, PublicKey), BundleError> {
    let broken = |error: minisign::PError| BundleError::Key(format!("no key can be made: {error}"));
    let KeyPair { pk, sk } = KeyPair::generate_unencrypted_keypair().map_err(broken)?;
    let mut public = path.as_os_str().to_owned();
    public.push(".pub");
    let public = PathBuf::from(public);
    if public.exists() {
        let exists = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "the file is there already");
        return Err(BundleError::file("create", &public)(exists));
    }
    let secret = sk
        .to_box(Some("larder bundle secret key"))
        .map_err(broken)?
        .into_string();
    write_new(path, 0o600, &secret)?;
    let text = pk.to_box().map_err(broken)?.into_string();
    write_new(&public, 0o644, &text)?;
    Ok((public, PublicKey(pk)))
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), BundleError> {
    let mut options = OpenOptions::new();
    let open = options.write(true).create_new(true).mode(mode).open(path);
    let write = |mut file: File| {
        file.write_all(text.trim_end().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    open.and_then(write).map_err(BundleError::file("create", path))
}

fn read_small(path: &Path) -> Result<String, BundleError> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = File::open(path).map_err(BundleError::file("open", path))?;
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(BundleError::file("read", path))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_from_its_key_and_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let (public, key) = keygen(&a).unwrap();
        let (_, other) = keygen(&b).unwrap();
        assert_eq!(PublicKey::read(&public).unwrap(), key);
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&a).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(keygen(&a).is_err(), "a key is never written over");
        let secret = SecretKey::read(&a, None).unwrap();
        let signature = secret.sign(b"catalogue").unwrap();
        let trusted = [other.clone(), key.clone()];
        assert_eq!(verify(b"catalogue", signature.as_bytes(), &trusted).unwrap(), key);
        let changed = verify(b"catalogus", signature.as_bytes(), &trusted)
            .unwrap_err()
            .to_string();
        assert!(changed.contains("changed or damaged"), "{changed}");
        let foreign = verify(b"catalogue", signature.as_bytes(), &[other])
            .unwrap_err()
            .to_string();
        assert!(foreign.contains("none of the 1 trusted"), "{foreign}");
        assert!(verify(b"catalogue", b"nonsense", &trusted).is_err());
        // A right signature whose second half was cut, at any place.
        let (whole, global) = signature.trim_end().rsplit_once('\n').unwrap();
        for bytes in 0..64 {
            let cut = STANDARD.encode(&STANDARD.decode(global).unwrap()[..bytes]);
            let cut = format!("{whole}\n{cut}\n");
            assert!(
                verify(b"catalogue", cut.as_bytes(), std::slice::from_ref(&key)).is_err(),
                "{bytes} bytes of it"
            );
        }
        assert!(PublicKey::parse("RWnonsense").is_err() && PublicKey::parse("").is_err());
        assert!(SecretKey::read(&public, None).is_err());
    }
}
