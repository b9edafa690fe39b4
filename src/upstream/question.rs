//! What can be asked of a registry, and what counts as an answer.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode};

use super::blob::Span;
use super::body;
use super::error::ErrorKind;
use super::heads::GetFallback;
use super::items::{ItemKind, ListSink};
use crate::oci::{Digest, Reference, Repository, media_type};

/// What an answer is that is none: an [`ErrorKind::Protocol`] says so.
pub(super) const WEB_PAGE: &str = "a web page";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Blob,
    Tags,
    Referrers,
}

impl Kind {
    pub(super) const COUNT: usize = 4;

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Manifest => "manifest",
            Kind::Blob => "blob",
            Kind::Tags => "tags",
            Kind::Referrers => "referrers",
        }
    }

    /// For sentences.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Kind::Manifest => "manifest",
            Kind::Blob => "blob",
            Kind::Tags => "list of tags",
            Kind::Referrers => "list of referrers",
        }
    }
}

/// One question, as it goes to any endpoint.
#[derive(Clone)]
pub(super) struct Question<'a> {
    pub(super) kind: Kind,
    pub(super) method: Method,
    pub(super) repository: &'a Repository,
    /// Behind `/v2/`.
    pub(super) path: String,
    pub(super) query: Option<&'static str>,
    pub(super) accept: &'static str,
    pub(super) range: Option<Span>,
    /// [`super::transport::Outgoing::as_stored`]
    pub(super) as_stored: bool,
    pub(super) take: Take,
    /// Says when a GET follows a HEAD that was refused.
    pub(super) get_fallback: GetFallback,
    /// How long the answer may take to begin, if that is less than what the configuration allows.
    pub(super) within: Option<Duration>,
    /// Without credentials, whatever there are.
    pub(super) as_nobody: bool,
    /// Set for a list: which of its items are wanted, and who takes them.
    pub(super) list: Option<List<'a>>,
    /// Mirrors that are left out this time.
    pub(super) without: &'a [Arc<str>],
}

/// The items of a list, and where they go.
#[derive(Clone, Copy)]
pub(super) struct List<'a> {
    /// The array in each page's document.
    pub(super) field: &'static str,
    pub(super) items: ItemKind,
    pub(super) sink: &'a dyn ListSink,
}

/// What of the answer is wanted.
#[derive(Clone, Copy)]
pub(super) enum Take {
    Head,
    /// A document of at most so many bytes.
    Whole(usize),
    /// A list, page after page, of at most so many bytes in all.
    Pages(usize),
    Stream,
}

pub(super) fn check(question: &Question<'_>, status: StatusCode, headers: &HeaderMap) -> Result<(), ErrorKind> {
    let protocol = |what: String| Err(ErrorKind::Protocol(what.into()));
    if status == StatusCode::PARTIAL_CONTENT && question.range.is_none() {
        return protocol("206 to a request without Range".to_owned());
    }
    // Decoding would change the bytes, and a decoder can be bombed (R-X12). What was asked for as it is stored is not decoded.
    if let Some(encoding) = headers.get(CONTENT_ENCODING)
        && !matches!(encoding.as_bytes().trim_ascii(), b"" | b"identity")
        && !(question.as_stored && encoding.as_bytes().trim_ascii() == b"gzip")
    {
        let encoding = String::from_utf8_lossy(encoding.as_bytes());
        return protocol(format!("Content-Encoding {:?}", body::one_line(&encoding, 40)));
    }
    let content_type = body::text(headers, &CONTENT_TYPE).unwrap_or_default();
    match question.kind {
        // A blob's Content-Type says nothing (R-U25); its digest does.
        Kind::Blob => Ok(()),
        // Not an error: a registry without this API answers with its front page (R-S21).
        Kind::Referrers if media_type::essence(content_type).as_deref() != Some(media_type::OCI_INDEX) => {
            Err(ErrorKind::NotFound { status: 200 })
        }
        _ if media_type::is_web_page(content_type) => protocol(WEB_PAGE.to_owned()),
        _ => Ok(()),
    }
}

pub(super) fn manifest<'a>(
    method: Method,
    repository: &'a Repository,
    reference: &Reference,
    take: Take,
) -> Question<'a> {
    Question {
        kind: Kind::Manifest,
        method,
        repository,
        path: format!("{repository}/manifests/{reference}"),
        query: None,
        accept: media_type::MANIFEST_ACCEPT,
        range: None,
        as_stored: false,
        take,
        get_fallback: GetFallback::Never,
        within: None,
        as_nobody: false,
        list: None,
        without: &[],
    }
}

pub(super) fn blob<'a>(method: Method, repository: &'a Repository, digest: &Digest, take: Take) -> Question<'a> {
    Question {
        kind: Kind::Blob,
        method,
        repository,
        path: format!("{repository}/blobs/{digest}"),
        query: None,
        accept: "*/*",
        range: None,
        as_stored: false,
        take,
        get_fallback: GetFallback::Never,
        within: None,
        as_nobody: false,
        list: None,
        without: &[],
    }
}
