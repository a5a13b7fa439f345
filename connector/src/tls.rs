//! The way to an HTTP server, the same for all who ask one (`registry`, `webhook`, `blob`, `kafka`): TCP, and TLS by rustls over ring.
//!
//! Owns: whom to trust, who we are, how long a connection may take to be made. Does not own: what is asked.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};

/// Makes connections, with TLS where the scheme is https.
pub type Connector = HttpsConnector<HttpConnector>;

/// Longest time for a connection to be made, within the time limit of the whole.
pub const CONNECT: Duration = Duration::from_secs(5);
/// An idle connection is kept for so long; below the minute after which many servers close theirs.
pub const IDLE: Duration = Duration::from_secs(30);

/// Whose certificates are believed.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// The system's, or those that SSL_CERT_FILE names.
    System,
    /// Those in this file, in PEM.
    File(&'a Path),
    /// These, in PEM.
    Text(&'a str),
    /// Nobody's: only http:// is asked.
    Nobody,
}

/// A certificate and its key, in PEM, by which the server knows us.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The certificate, and those that it was signed by.
    pub certificate: &'a Path,
    /// Its key.
    pub key: &'a Path,
}

/// Why no connection can be made at all.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The system trusts nobody.
    #[error(
        "this machine has no certificates to trust an https:// server by ({0}): install ca-certificates, or name a file in SSL_CERT_FILE"
    )]
    NoRoots(Arc<std::io::Error>),
    /// A file is not there, or no PEM.
    #[error("{} cannot be read: {why}", file.display())]
    Unread {
        /// It.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// A file without a certificate.
    #[error("{} holds no certificate in PEM", .0.display())]
    Empty(PathBuf),
    /// A text that is no certificate in PEM, or holds one that rustls does not take.
    #[error("the text is no certificate in PEM that can be trusted: {0}")]
    Text(String),
    /// A certificate that rustls does not take.
    #[error("{} cannot be trusted: {why}", file.display())]
    Untrusted {
        /// Its file.
        file: PathBuf,
        /// Why.
        why: rustls::Error,
    },
    /// The key is not that of the certificate.
    #[error("{} and {} do not go together: {why}", certificate.display(), key.display())]
    Apart {
        /// The one.
        certificate: PathBuf,
        /// The other.
        key: PathBuf,
        /// Why.
        why: rustls::Error,
    },
    /// rustls refuses what is fixed here.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Connections to those that are trusted, each made within `connect`.
///
/// # Errors
/// [`Error`].
pub fn connector(
    trust: Trust<'_>,
    identity: Option<Identity<'_>>,
    connect: Duration,
) -> Result<Connector, Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(connect));
    let tls = HttpsConnectorBuilder::new().with_tls_config(configuration(trust, identity)?);
    Ok(tls.https_or_http().enable_http1().wrap_connector(tcp))
}

fn configuration(trust: Trust<'_>, identity: Option<Identity<'_>>) -> Result<ClientConfig, Error> {
    let config = match trust {
        Trust::System if identity.is_none() => return system(),
        Trust::System => native()?,
        Trust::File(file) => builder()?.with_root_certificates(trusted(file)?),
        Trust::Text(text) => builder()?.with_root_certificates(told(text)?),
        Trust::Nobody => builder()?.with_root_certificates(RootCertStore::empty()),
    };
    let Some(Identity { certificate, key }) = identity else { return Ok(config.with_no_client_auth()) };
    let private = PrivateKeyDer::from_pem_file(key).map_err(|why| unread(key, &why))?;
    config.with_client_auth_cert(certificates(certificate)?, private).map_err(|why| Error::Apart {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        why,
    })
}

/// The system's certificates, read once: a store alone has a client for itself and one for each source of its credentials.
fn system() -> Result<ClientConfig, Error> {
    static READ: OnceLock<Result<ClientConfig, Error>> = OnceLock::new();
    READ.get_or_init(|| Ok(native()?.with_no_client_auth())).clone()
}

fn native() -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
    builder()?.with_native_roots().map_err(|error| Error::NoRoots(Arc::new(error)))
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}

fn trusted(file: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|why| Error::Untrusted { file: file.to_owned(), why })?;
    }
    Ok(roots)
}

fn told(text: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|why| Error::Text(why.to_string()))?;
        roots.add(certificate).map_err(|why| Error::Text(why.to_string()))?;
    }
    if roots.is_empty() { Err(Error::Text("there is none in it".to_owned())) } else { Ok(roots) }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_file_iter(file).map_err(|why| unread(file, &why))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|why| unread(file, &why))?;
    if found.is_empty() { Err(Error::Empty(file.to_owned())) } else { Ok(found) }
}

fn unread(file: &Path, why: &pem::Error) -> Error {
    Error::Unread { file: file.to_owned(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_certificates_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let said = |trust: Trust<'_>, identity: Option<Identity<'_>>| {
            connector(trust, identity, CONNECT).map(drop).unwrap_err().to_string()
        };
        assert!(said(Trust::File(&file), None).contains("ca.pem cannot be read: "));
        std::fs::write(&file, "").unwrap();
        assert!(said(Trust::File(&file), None).ends_with("ca.pem holds no certificate in PEM"));
        let identity = Identity { certificate: &file, key: &dir.path().join("key.pem") };
        assert!(said(Trust::Nobody, Some(identity)).contains("key.pem cannot be read: "));
        assert!(connector(Trust::Nobody, None, CONNECT).is_ok(), "http:// needs nobody's word");
        let said =
            |text: &str| connector(Trust::Text(text), None, CONNECT).map(drop).unwrap_err().to_string();
        assert!(said("").ends_with("there is none in it"));
        let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(said(empty).contains("can be trusted: "));
        let authority = include_str!("registry/tls/ca.pem");
        assert!(connector(Trust::Text(authority), None, CONNECT).is_ok());
    }
}
